"""One operation computed in several ways, and the choice among them."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

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


def kernels(
    implementations: Mapping[str, Implementation],
    is_possible: Callable[[str, Implementation], bool],
) -> dict[str, Callable[..., Any]]:
    """What to call on each platform that has a kernel for this."""
    return {
        each.platform: each.call
        for name, each in implementations.items()
        if each.platform is not None and is_possible(name, each)
    }


def undivided(axes: set[str]) -> str:
    """Why a kernel cannot be called where the compiler divides over ``axes``."""
    return f"the compiler cannot divide a kernel over {sorted(axes)}; call it in a jax.shard_map"
