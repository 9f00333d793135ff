"""The public merging calls and the choice of their implementation."""

from collections.abc import Callable, Mapping

from jaxtyping import Array, Bool, Float, Int

from vidcache_jax.ops.by_heads import by_heads
from vidcache_jax.ops.implementations import named
from vidcache_jax.ops.merge import ref

IMPLEMENTATIONS: Mapping[str, tuple[Callable, Callable]] = {"xla": (ref.route, ref.merge_values)}
"""(route, merge_values)."""


def _chosen(implementation: str | None) -> tuple[Callable, Callable]:
    return named("merge", IMPLEMENTATIONS, implementation or "xla")


def route(
    evicted: Float[Array, "B N delta E"],
    retained: Float[Array, "B N delta R"],
    rank: Int[Array, "B N R"],
    *,
    implementation: str | None = None,
) -> tuple[Int[Array, "B N E"], Float[Array, "B N E"]]:
    """For each evicted profile, the retained one of highest cosine; see `ref.route`.

    Args:
      evicted, retained: profiles, one number for each step of the horizon.
      rank: of the retained among each other, from 0; -1 for entries that are not retained.
      implementation: a name in `IMPLEMENTATIONS`, or None for the best one supported.

    Returns:
      Its rank (of equals, the lowest), and the cosine.

    Raises:
      ValueError: no implementation has that name.
    """
    return _chosen(implementation)[0](evicted, retained, rank)


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
      implementation: a name in `IMPLEMENTATIONS`, or None for the best one supported.

    Raises:
      ValueError: no implementation has that name.
    """
    merging = _chosen(implementation)[1]
    return by_heads(merging, v, weight, source, target, is_merged)
