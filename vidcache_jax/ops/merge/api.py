"""The public merging calls and the choice of their implementation."""

from jaxtyping import Array, Bool, Float, Int

from vidcache_jax.ops.by_heads import by_heads
from vidcache_jax.ops.implementations import choose
from vidcache_jax.ops.merge.check import is_sound
from vidcache_jax.ops.merge.table import MERGING, ROUTING


def route(
    evicted: Float[Array, "B N delta E"],
    retained: Float[Array, "B N delta R"],
    rank: Int[Array, "B N R"],
    *,
    implementation: str | None = None,
) -> tuple[Int[Array, "B N E"], Float[Array, "B N E"]]:
    """For each evicted profile, the retained one of highest cosine; see `ref.route`.

    On a mesh each chip routes what its heads evict.

    Args:
      evicted, retained: profiles, one number for each step of the horizon.
      rank: of the retained among each other, from 0; -1 for entries that are not retained, which
        may hold anything.
      implementation: "xla", "tpu", "triton" or None for the best that can do this where it runs; a
        kernel of this machine's device is checked first, once (`check`).

    Returns:
      Its rank (of equals, the lowest), and the cosine.

    Raises:
      ValueError: no implementation has that name.
      NotImplementedError: the named implementation cannot do this; the message says why.
    """
    chosen = choose(
        "routing", ROUTING, implementation, evicted,
        is_sound=lambda name, each: is_sound(name, each, evicted.shape[2]),
    )  # fmt: skip
    return by_heads(chosen, evicted, retained, rank)


def merge_values(
    v: Float[Array, "B N S H"],
    weight: Float[Array, "B N delta S"],
    source: Int[Array, "B N E"],
    target: Int[Array, "B N E"],
    is_merged: Bool[Array, "B N E"],
    *,
    implementation: str | None = None,
) -> Float[Array, "B N S H"]:
    """Adds values at ``source`` slots to those at ``target`` slots; see `ref.merge_values`.

    Args:
      v: values of all slots; XLA updates a donated buffer in place.
      weight: attention that each slot receives at each step of the horizon.
      source, target: slots; no slot is both.
      is_merged: which of the E pairs count.
      implementation: "xla", "triton" or None for "xla".

    Raises:
      ValueError, NotImplementedError: as `route`.
    """
    chosen = choose("merging", MERGING, implementation)
    return by_heads(chosen, v, weight, source, target, is_merged)
