"""The definition of attention column means, in two passes over blocks of keys.

    z[t, s] = <rotated q_t, rotated k_s> / sqrt(H)
    pass 1    max_t = max_s z[t, s]
              denominator_t = sum_s exp(z[t, s] - max_t)
    pass 2    weight_s = mean_t exp(z[t, s] - max_t) / denominator_t
              logit_s = mean_t z[t, s]

(Future Forcing, arXiv 2605.30083, appendix B: the scoring kernel.) Sums run over visible keys.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Bool, Float, Int

from vidcache_jax.ops.attention import AttentionPart
from vidcache_jax.ops.blocks import block_size
from vidcache_jax.ops.rope import rotate


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ColumnMeans:
    """Of each key, over the queries; float32, 0 for keys that are not visible."""

    weight: Float[Array, "*stack B N delta S"]
    """Softmax weight; sums to 1 over the keys of a head."""
    logit: Float[Array, "*stack B N delta S"]


# Jitted, or a call outside of jit would compile its loops anew.
@functools.partial(jax.jit, static_argnames=("ahead", "most_queries", "most_keys"))
def column_means(
    q: Float[Array, "B N T H"],
    q_position: Int[Array, "B G T 3"],
    k: Float[Array, "B N S H"],
    k_position: Int[Array, "B G S 3"],
    visible: Bool[Array, "B G S"],
    attended: AttentionPart | None = None,
    *,
    ahead: tuple[int, ...] = (0,),
    most_queries: int = 2048,
    most_keys: int = 128,
) -> ColumnMeans:
    """See the formulas above; logits and sums in float32, as in `ops.attention`.

    Queries go in groups, of several steps ahead where they are few: each group rotates the keys
    once a pass, block by block.

    Args:
      attended: the attention of the same queries, 0 frames ahead, and keys; pass 1 is left out.
      ahead: by how many frames the queries are moved, once for each of the results.
      most_queries, most_keys: of a block; what is temporary is N times its logits, and a group.

    Returns:
      Means [B, N, delta, S].
    """
    batch, num_heads, num_queries, head_dim = q.shape
    num_keys, horizon = k.shape[2], len(ahead)
    size = block_size(num_queries, most_queries)
    steps = block_size(horizon, max(1, most_queries // size))
    keys = block_size(num_keys, most_keys)
    key_blocks = jnp.arange(num_keys // keys, dtype=jnp.int32)
    lowest = jnp.finfo(jnp.float32).min

    def block_of(x: Array, index: Array, size: int) -> Array:
        return jax.lax.dynamic_slice_in_dim(x, index * size, size, axis=2)

    def keys_of(index: Array) -> tuple[Array, Array]:
        # XLA would rather rotate with tokens innermost and, for that, turn all keys outside of the
        # loops: on TPUs a copy of half of the cache.
        rows = with_layout_constraint(block_of(k, index, keys), Layout((0, 1, 2, 3)))
        rotated = rotate(rows, block_of(k_position, index, keys))
        return rotated.astype(q.dtype), block_of(visible, index, keys)[:, :, None]

    def queries_at(own: Array, position: Array) -> Array:
        # Block by block like the keys: what RoPE makes of a group in float32 is several times it.
        rows = block_size(size, most_keys)

        def next_rows(index: Array, rotated: Array) -> Array:
            block = rotate(block_of(own, index, rows), block_of(position, index, rows))
            return jax.lax.dynamic_update_slice_in_dim(rotated, block, index * rows, axis=2)

        return jax.lax.fori_loop(0, size // rows, next_rows, jnp.zeros_like(own))

    def softmax_residuals(queries: Array) -> tuple[Array, Array]:
        def next_keys(carry, index):
            top, total = carry
            k_block, is_visible = keys_of(index)
            z = jnp.where(is_visible, logits(queries, k_block), lowest)
            now = jnp.maximum(top, jnp.max(z, axis=-1))
            weights = jnp.where(is_visible, jnp.exp(z - now[..., None]), 0.0)
            return (now, total * jnp.exp(top - now) + jnp.sum(weights, axis=-1)), None

        zeros = jnp.zeros(queries.shape[:3], jnp.float32)
        return jax.lax.scan(next_keys, (zeros + lowest, zeros), key_blocks)[0]

    def logits(queries: Array, k_block: Array) -> Array:
        z = jnp.einsum("bnth,bnsh->bnts", queries, k_block, preferred_element_type=jnp.float32)
        return z * jnp.float32(head_dim**-0.5)

    def next_group(sums, index):
        step, part = index // (num_queries // size), index % (num_queries // size)
        own, position = block_of(q, part, size), block_of(q_position, part, size)
        frames = jnp.pad(jnp.array(ahead, jnp.int32)[:, None], ((0, 0), (0, 2)))
        moved = [position + frames[step * steps + i][None, None, None] for i in range(steps)]
        queries = jnp.concatenate([queries_at(own, at) for at in moved], axis=2)
        if attended is None:
            top, total = softmax_residuals(queries)
        else:
            top, total = (block_of(x, part, size) for x in (attended.max, attended.denominator))
        # A query that sees no key gives no weight.
        share = jnp.where(total > 0, 1 / total, 0.0) / num_queries
        over_queries = lambda x: jnp.sum(
            rearrange(x, "b n (delta t) s -> b n delta t s", delta=steps), axis=3
        )

        def next_keys(sums, key_index):
            k_block, is_visible = keys_of(key_index)
            z = logits(queries, k_block)
            shifted = jnp.where(is_visible, z, lowest) - top[..., None]
            weights = jnp.exp(shifted) * share[..., None]
            corner = (0, 0, step * steps, key_index * keys)

            # In place: results put one after the other would have to be rearranged, in copies.
            def added(sum_, part):
                part = jnp.where(is_visible, over_queries(part), 0.0)
                before = jax.lax.dynamic_slice(sum_, corner, part.shape)
                sum_ = jax.lax.dynamic_update_slice(sum_, before + part, corner)
                return with_layout_constraint(sum_, Layout((0, 1, 2, 3)))

            return (added(sums[0], weights), added(sums[1], z / num_queries)), None

        return jax.lax.scan(next_keys, sums, key_blocks)[0], None

    groups = jnp.arange(num_queries // size * (horizon // steps), dtype=jnp.int32)
    zeros = jnp.zeros((batch, num_heads, horizon, num_keys), jnp.float32)
    # XLA for TPUs would rather sum with heads next to tokens, and copy all of it afterwards.
    zeros = with_layout_constraint(zeros, Layout((0, 1, 2, 3)))
    return ColumnMeans(*jax.lax.scan(next_group, (zeros, zeros), groups)[0])
