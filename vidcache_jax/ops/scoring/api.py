"""The one public scoring call and the choice of its implementation."""

import functools
from collections.abc import Callable

import jax
from jaxtyping import Array, Bool, Float, Int

from vidcache_jax.array_typing import Heads
from vidcache_jax.ops.attention import AttentionPart
from vidcache_jax.ops.by_heads import by_heads, compiler_axes
from vidcache_jax.ops.implementations import choose
from vidcache_jax.ops.scoring.check import is_sound
from vidcache_jax.ops.scoring.ref import ColumnMeans
from vidcache_jax.ops.scoring.table import IMPLEMENTATIONS
from vidcache_jax.sharding import MODEL_AXES, SEQUENCE


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
) -> ColumnMeans:
    """Mean attention weight and mean logit of each of S keys over T queries; see `ref`.

    On a mesh each chip scores the keys of its heads, with its share of the queries.

    Args:
      q, k: un-rotated. "xla" rotates block by block, "tpu" head by head, "triton" all at
        once, a temporary as large as the keys.
      q_position, k_position: (frame, row, column) of each token, per head or for all.
      visible: which keys exist; only they receive weight, the others get 0 and may hold anything.
      attended: of these queries over these keys, if known, 0 frames ahead: its residuals save one
        of the two passes.
      ahead: by how many frames the queries are moved, once for each of delta results.
      implementation: "xla", "tpu", "triton" or None for the best one that can do this where it
        runs; a kernel of this machine's device is checked first, once (`check`).

    Returns:
      Means [B, N, delta, S].

    Raises:
      ValueError: no implementation has that name.
      NotImplementedError: the named implementation cannot do this; the message says why.
    """
    chosen = choose(
        "scoring", IMPLEMENTATIONS, implementation, q,
        is_sound=lambda name, each: is_sound(name, each, q.shape[-1], q.dtype),
    )  # fmt: skip
    score = functools.partial(chosen, ahead=ahead)
    mesh, axes = jax.sharding.get_abstract_mesh(), compiler_axes()
    if {*MODEL_AXES} <= axes and q.shape[2] % mesh.shape[SEQUENCE] == 0:
        score = functools.partial(_with_a_share, score, mesh.shape[SEQUENCE])
    return by_heads(score, q, q_position, k, k_position, visible, attended)


def _with_a_share(
    score: Callable[..., ColumnMeans], num_shares: int, q: Heads, q_position, k, k_position,
    visible, attended: AttentionPart | None,
) -> ColumnMeans:  # fmt: skip
    """On a chip that has all queries of its heads: a mean of means, one over each equal share."""

    def share(x: Array) -> Array:
        size = x.shape[2] // num_shares
        start = jax.lax.axis_index(SEQUENCE) * size
        return jax.lax.dynamic_slice_in_dim(x, start, size, axis=2)

    q, q_position, attended = jax.tree.map(share, (q, q_position, attended))
    means = score(q, q_position, k, k_position, visible, attended)
    return jax.tree.map(lambda x: jax.lax.pmean(x, SEQUENCE), means)
