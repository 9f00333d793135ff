"""What kernels of scoring share: rotation before them, and the means of what they sum.

Queries and keys are rotated beforehand, by XLA: in a kernel every block of keys would be rotated
anew for every block of queries. Mean logits need no logits: the mean of products is the product
with the mean query.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vidcache_jax.ops.attention import AttentionPart
from vidcache_jax.ops.rope import rotate
from vidcache_jax.ops.scoring.ref import ColumnMeans


class Scored(NamedTuple):
    """Of what the means are made."""

    q: Float[Array, "B N T H"]
    q_position: Int[Array, "B G delta T 3"]
    k: Float[Array, "B N S H"]
    k_position: Int[Array, "B G S 3"]
    visible: Bool[Array, "B G S"]
    log_sum: Float[Array, "B N T"] | None
    """Log of the sum of exponentials of a query's logits, if known: inf if it sees no key."""


def scored(
    q: Float[Array, "B N T H"],
    q_position: Int[Array, "B G T 3"],
    k: Float[Array, "B N S H"],
    k_position: Int[Array, "B G S 3"],
    visible: Bool[Array, "B G S"],
    attended: AttentionPart | None,
    ahead: tuple[int, ...],
) -> Scored:
    """The arguments of `ref.column_means`, with positions of the queries at each step."""
    steps = jnp.pad(jnp.array(ahead, jnp.int32)[:, None], ((0, 0), (0, 2)))
    moved = q_position[:, :, None] + steps[None, None, :, None]
    log_sum = None
    if attended is not None:
        # A query that sees no key gives no weight.
        sees = attended.denominator > 0
        log_sum = jnp.where(sees, attended.max + jnp.log(attended.denominator), jnp.inf)
    return Scored(q, moved, k, k_position, visible, log_sum)


def means_of(
    given: Scored, column_sums: Callable[[Array, Array, Array, Array | None], Array]
) -> ColumnMeans:
    """Column means of all heads that are given.

    Args:
      column_sums: from rotated q [B, N, delta, T, H] and k [B, N, S, H], `Scored.visible` and
        `Scored.log_sum` to the softmax weight that each key receives from all queries of a step,
        [B, N, delta, S]; anything where it is not visible.
    """
    batch, num_heads, num_queries, head_dim = given.q.shape
    num_steps = given.q_position.shape[2]
    shape = (batch, num_heads, num_steps, num_queries, head_dim)
    q = rotated(jnp.broadcast_to(given.q[:, :, None], shape), given.q_position)
    k = rotated(given.k, given.k_position).astype(q.dtype)
    sums = column_sums(q, k, given.visible, given.log_sum)
    logit = jnp.einsum(
        "bndh,bnsh->bnds", jnp.mean(q, axis=3, dtype=jnp.float32), k.astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
    )  # fmt: skip
    seen = given.visible[:, :, None]
    return ColumnMeans(
        weight=jnp.where(seen, sums / num_queries, 0.0),
        logit=jnp.where(seen, logit * jnp.float32(head_dim**-0.5), 0.0),
    )


def rotated(
    x: Float[Array, "B N *steps T H"], position: Int[Array, "B G *steps T 3"]
) -> Float[Array, "B N *steps T H"]:
    """One video and step after the other: the angles of all would take more than the keys do."""
    x, position = (jnp.moveaxis(array, 1, -3) for array in (x, position))
    one_by_one = lambda array: array.reshape(-1, 1, *array.shape[-3:])
    turned = jax.lax.map(lambda pair: rotate(*pair), (one_by_one(x), one_by_one(position)))
    return jnp.moveaxis(turned.reshape(x.shape), -3, 1)
