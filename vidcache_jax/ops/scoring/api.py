"""The one public scoring call and the choice of its implementation."""

import functools
from collections.abc import Callable, Mapping

from jaxtyping import Array, Bool, Float, Int

from vidcache_jax.ops.attention import AttentionPart
from vidcache_jax.ops.by_heads import by_heads
from vidcache_jax.ops.implementations import named
from vidcache_jax.ops.scoring import ref

IMPLEMENTATIONS: Mapping[str, Callable[..., ref.ColumnMeans]] = {"xla": ref.column_means}


def column_means(
    q: Float[Array, "B N T H"],
    q_position: Int[Array, "B G T 3"],
    k: Float[Array, "B N S H"],
    k_position: Int[Array, "B G S 3"],
    visible: Bool[Array, "B G S"],
    attended: AttentionPart | None = None,
    *,
    ahead: tuple[int, ...] = (0,),
    implementation: str | None = None,
) -> ref.ColumnMeans:
    """Mean attention weight and mean logit of each of S keys over T queries; see `ref`.

    Args:
      q, k: un-rotated. Implementations rotate block by block, so that there is never a rotated
        copy of the cache.
      q_position, k_position: (frame, row, column) of each token, per head or for all.
      visible: which keys exist; only they receive weight, the others get 0.
      attended: of these queries over these keys, if known: its residuals save one of the two
        passes.
      ahead: by how many frames the queries are moved, once for each of delta results.
      implementation: a name in `IMPLEMENTATIONS`, or None for the best one supported.

    Returns:
      Means [B, N, delta, S].

    Raises:
      ValueError: no implementation has that name.
    """
    chosen = named("scoring", IMPLEMENTATIONS, implementation or "xla")
    scoring = functools.partial(chosen, ahead=ahead)
    return by_heads(scoring, q, q_position, k, k_position, visible, attended)
