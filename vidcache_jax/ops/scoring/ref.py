"""The definition of attention column means, in two passes over blocks of keys and queries.

    z[t, s] = <rotated q_t, rotated k_s> / sqrt(H)
    pass 1    max_t = max_s z[t, s]
              denominator_t = sum_s exp(z[t, s] - max_t)
    pass 2    weight_s = mean_t exp(z[t, s] - max_t) / denominator_t
              logit_s = mean_t z[t, s]

(Future Forcing, arXiv 2605.30083, appendix B: the scoring kernel.) Sums run over visible keys.
All heads go together and blocks are of queries and keys, so that heads may be sharded.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vidcache_jax.ops.attention import AttentionPart
from vidcache_jax.ops.blocks import block_size
from vidcache_jax.ops.rope import rotate


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ColumnMeans:
    """Of each key, over the queries; float32, 0 for keys that are not visible."""

    weight: Float[Array, "*stack B N S"]
    """Softmax weight; sums to 1 over the keys of a head."""
    logit: Float[Array, "*stack B N S"]


# Jitted, or a call outside of jit would compile its loops anew.
@functools.partial(jax.jit, static_argnames=("most_queries", "most_keys"))
def column_means(
    q: Float[Array, "B N T H"],
    q_position: Int[Array, "B G T 3"],
    k: Float[Array, "B N S H"],
    k_position: Int[Array, "B G S 3"],
    visible: Bool[Array, "B G S"],
    attended: AttentionPart | None = None,
    *,
    most_queries: int = 256,
    most_keys: int = 1024,
) -> ColumnMeans:
    """See the formulas above; logits and sums in float32, as in `ops.attention`.

    Args:
      attended: the attention of the same queries and keys; pass 1 is then left out.
      most_queries, most_keys: of a block; what is temporary is N times a block's logits.
    """
    batch, num_heads, num_queries, head_dim = q.shape
    num_keys = k.shape[2]
    queries, keys = block_size(num_queries, most_queries), block_size(num_keys, most_keys)
    lowest = jnp.finfo(jnp.float32).min

    def block_of(x: Array, index: Array, size: int) -> Array:
        return jax.lax.dynamic_slice_in_dim(x, index * size, size, axis=2)

    def keys_of(index: Array) -> tuple[Array, Array]:
        rotated = rotate(block_of(k, index, keys), block_of(k_position, index, keys))
        return rotated.astype(q.dtype), block_of(visible, index, keys)[:, :, None]

    def logits(index: Array, k_block: Array) -> Array:
        q_block = rotate(block_of(q, index, queries), block_of(q_position, index, queries))
        z = jnp.einsum("bnth,bnsh->bnts", q_block, k_block, preferred_element_type=jnp.float32)
        return z * jnp.float32(head_dim**-0.5)

    query_blocks = jnp.arange(num_queries // queries, dtype=jnp.int32)
    key_blocks = jnp.arange(num_keys // keys, dtype=jnp.int32)

    def softmax_residuals() -> tuple[Array, Array]:
        def next_keys(carry, key_index):
            k_block, is_visible = keys_of(key_index)

            def next_queries(carry, index):
                top, total = carry
                z = jnp.where(is_visible, logits(index, k_block), lowest)
                before = block_of(top, index, queries)
                now = jnp.maximum(before, jnp.max(z, axis=-1))
                weights = jnp.where(is_visible, jnp.exp(z - now[..., None]), 0.0)
                sums = block_of(total, index, queries) * jnp.exp(before - now)
                put = lambda x, new: jax.lax.dynamic_update_slice_in_dim(
                    x, new, index * queries, axis=2
                )
                return (put(top, now), put(total, sums + jnp.sum(weights, axis=-1))), None

            return jax.lax.scan(next_queries, carry, query_blocks)[0], None

        zeros = jnp.zeros((batch, num_heads, num_queries), jnp.float32)
        return jax.lax.scan(next_keys, (zeros + lowest, zeros), key_blocks)[0]

    if attended is None:
        top, total = softmax_residuals()
    else:
        top, total = attended.max, attended.denominator
    # A query that sees no key gives no weight.
    share = jnp.where(total > 0, 1 / total, 0.0) / num_queries

    def means_of(key_index):
        k_block, is_visible = keys_of(key_index)

        def next_queries(sums, index):
            weight, logit = sums
            z = logits(index, k_block)
            shifted = jnp.where(is_visible, z, lowest) - block_of(top, index, queries)[..., None]
            weights = jnp.exp(shifted) * block_of(share, index, queries)[..., None]
            return (weight + jnp.sum(weights, axis=2), logit + jnp.sum(z, axis=2)), None

        zeros = jnp.zeros((batch, num_heads, keys), jnp.float32)
        (weight, logit), _ = jax.lax.scan(next_queries, (zeros, zeros), query_blocks)
        is_visible = is_visible[:, :, 0]
        return jnp.where(is_visible, weight, 0.0), jnp.where(is_visible, logit / num_queries, 0.0)

    means = jax.lax.map(means_of, key_blocks)
    return ColumnMeans(*(
        jnp.moveaxis(x, 0, 2).reshape(batch, num_heads, num_keys) for x in means
    ))  # fmt: skip
