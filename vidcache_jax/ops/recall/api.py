"""The public calls, recall and store, and the choice of their implementation."""

from typing import Any

from jaxtyping import Array, Bool, Int

from vidcache_jax.array_typing import CachedHeads, Heads
from vidcache_jax.ops.by_heads import by_heads
from vidcache_jax.ops.implementations import choose
from vidcache_jax.ops.recall.check import is_sound
from vidcache_jax.ops.recall.moments import Moments
from vidcache_jax.ops.recall.table import IMPLEMENTATIONS


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
    shared = places, admitted, trusted
    return _call("recall", implementation, (x, moments), shared, tau=tau)


def store(
    x: CachedHeads,
    moments: Moments,
    frames: Heads,
    places: Int[Array, "B F"],
    *,
    implementation: str | None = None,
) -> tuple[CachedHeads, Moments]:
    """Writes F frames and their moments into the slots ``places``; the others keep their bits.

    Chosen, divided and checked as `recall` is.

    Args:
      frames: of x's dtype.
      places: no two of a video are the same.
    """
    return _call("store", implementation, (x, moments, frames), (places,))


def _call(
    what: str,
    implementation: str | None,
    own: tuple[CachedHeads, Moments, *tuple[Any, ...]],
    shared: tuple[Array, ...],
    **options: Any,
) -> tuple[CachedHeads, Moments]:
    """An operation on arrays that have heads and on others that all heads share."""
    x, moments, *_ = own
    chosen = choose(
        what, IMPLEMENTATIONS[what], implementation, x, moments.mean.shape[2],
        is_sound=lambda name, each: is_sound(what, name, each, x.shape[-1], x.dtype),
    )  # fmt: skip

    def of_own_heads(own, shared):
        return chosen(*own, *(each[:, 0] for each in shared), **options)

    for_all_heads = [each[:, None] for each in shared]
    return by_heads(of_own_heads, own, for_all_heads)
