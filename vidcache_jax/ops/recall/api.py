"""The one public recall call and the choice of its implementation."""

import functools
from collections.abc import Callable

import jax
from jaxtyping import Array, Bool, Int

from vidcache_jax.array_typing import CachedHeads
from vidcache_jax.ops.by_heads import by_heads, compiler_axes
from vidcache_jax.ops.implementations import Implementation, kernels, named, undivided
from vidcache_jax.ops.recall import ref
from vidcache_jax.ops.recall.check import is_sound
from vidcache_jax.ops.recall.moments import Moments
from vidcache_jax.ops.recall.table import IMPLEMENTATIONS
from vidcache_jax.sharding import MODEL_AXES


def recall(
    x: CachedHeads,
    moments: Moments,
    places: Int[Array, "B F"],
    admitted: Bool[Array, "B F"],
    trusted: Bool[Array, "B K"],
    *,
    tau: float,
    implementation: str | None = None,
) -> tuple[CachedHeads, Moments]:
    """Moves admitted frames towards the trusted ones, each in its slot; see `ref.recall`.

    On a mesh each chip edits the frames of its heads.

    Args:
      x: keys or values of K slots of S / K tokens each; XLA updates a donated buffer in place.
      moments: of each slot.
      places: slots of F frames. The slot of an admitted frame is no other's.
      admitted: which of the F are edited.
      trusted: slots towards whose moments, taken together, they are moved.
      tau: how far, 0 = not at all, 1 = they get the trusted mean and deviation.
      implementation: a name in `table`, or None for the best one that can do this where it runs; a
        kernel of this machine's device is checked first, once (`check`).

    Returns:
      The slots, and the moments of each.

    Raises:
      ValueError: no implementation has that name.
      NotImplementedError: the named implementation cannot do this; the message says why.
    """
    chosen = _chosen(x, trusted.shape[1], implementation)
    if chosen is ref.recall:
        return ref.recall(x, moments, places, admitted, trusted, tau=tau)

    # A kernel is called where every axis is mapped by hand: the compiler cannot divide it.
    def of_own_heads(x, moments, *shared):
        return chosen(x, moments, *(each[:, 0] for each in shared), tau=tau)

    for_all_heads = (each[:, None] for each in (places, admitted, trusted))
    return by_heads(of_own_heads, x, moments, *for_all_heads, axes=compiler_axes())


def _chosen(x: CachedHeads, num_slots: int, implementation: str | None) -> Callable:
    if implementation is None:
        return _best(x, num_slots)
    chosen = named("recall", IMPLEMENTATIONS, implementation)
    if reason := _reason_against(chosen, x, num_slots):
        raise NotImplementedError(f"recall on {implementation!r}: {reason}")
    return chosen.call


def _best(x: CachedHeads, num_slots: int) -> Callable:
    def is_possible(name: str, each: Implementation) -> bool:
        reason = _reason_against(each, x, num_slots)
        return reason is None and is_sound(name, each, x.shape[-1], x.dtype)

    there = kernels(IMPLEMENTATIONS, is_possible)
    if not there:
        return ref.recall

    def recall_there(*arrays, tau: float):
        # Which device this will run on is known when it is lowered, not here.
        default, *others = (
            functools.partial(each, tau=tau) for each in (ref.recall, *there.values())
        )
        return jax.lax.platform_dependent(
            *arrays, default=default, **dict(zip(there, others, strict=True))
        )

    return recall_there


def _reason_against(implementation: Implementation, x: CachedHeads, num_slots: int) -> str | None:
    axes = compiler_axes()
    if implementation.call is not ref.recall and axes not in (set(), {*MODEL_AXES}):
        return undivided(axes)
    return implementation.reason_against(x, num_slots)
