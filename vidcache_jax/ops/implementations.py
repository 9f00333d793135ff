"""One operation computed in several ways, and the choice among them."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax

from vidcache_jax.ops.by_heads import compiler_axes
from vidcache_jax.sharding import MODEL_AXES

Chosen = TypeVar("Chosen")


class Implementation(NamedTuple):
    """One way to compute an operation."""

    call: Callable[..., Any]
    reason_against: Callable[..., str | None]
    """Why it cannot do this, None if it can."""
    platform: str | None = None
    """Where it is preferred to "xla", in JAX's words."""


def named(what: str, implementations: Mapping[str, Chosen], name: str) -> Chosen:
    """The implementation of that name.

    Raises:
      ValueError: there is none; the message lists those there are.
    """
    if name not in implementations:
        raise ValueError(f"no {what} implementation {name!r}; there are {[*implementations]}")
    return implementations[name]


def undivided(axes: set[str]) -> str:
    """Why a kernel cannot be called where the compiler divides over ``axes``."""
    return f"the compiler cannot divide a kernel over {sorted(axes)}; call it in a jax.shard_map"


def choose(
    what: str,
    implementations: Mapping[str, Implementation],
    name: str | None,
    *about: Any,
    is_sound: Callable[[str, Implementation], bool] = lambda name, each: True,
) -> Callable[..., Any]:
    """What computes an operation: that of a name, or the best there is.

    A kernel has to be called where every axis is mapped by hand: whoever calls what is chosen sees
    to that (`by_heads`), which is possible if the compiler divides over all of `MODEL_AXES` or
    nothing.

    Args:
      about: what `Implementation.reason_against` goes by.
      is_sound: whether a kernel computes what it should on this machine's device; asked of those
        that would be chosen without a name.

    Raises:
      ValueError: no implementation has that name.
      NotImplementedError: the named implementation cannot do this; the message says why.
    """

    def reason_against(each: Implementation) -> str | None:
        axes = compiler_axes()
        if each is not implementations["xla"] and axes not in (set(), {*MODEL_AXES}):
            return undivided(axes)
        return each.reason_against(*about)

    if name is not None:
        chosen = named(what, implementations, name)
        if reason := reason_against(chosen):
            raise NotImplementedError(f"{what} on {name!r}: {reason}")
        return chosen.call

    there = {
        each.platform: each.call
        for name, each in implementations.items()
        if each.platform is not None and reason_against(each) is None and is_sound(name, each)
    }
    if not there:
        return implementations["xla"].call

    def best(*arguments, **options):
        calls = {"default": implementations["xla"].call, **there}
        given = {where: functools.partial(call, **options) for where, call in calls.items()}
        # Which device this will run on is known when it is lowered, not here.
        return jax.lax.platform_dependent(*arguments, **given)

    return best
