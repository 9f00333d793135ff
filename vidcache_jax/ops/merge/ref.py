"""The definition of routing and merging (Future Forcing, arXiv 2605.30083, Eq. 3)."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vidcache_jax.ops.blocks import block_size


# Jitted, or a call outside of jit would compile its loops anew.
@functools.partial(jax.jit, static_argnames=("most_evicted", "most_retained"))
def route(
    evicted: Float[Array, "delta B N E"],
    retained: Float[Array, "delta B N R"],
    is_retained: Bool[Array, "B N R"],
    *,
    most_evicted: int = 256,
    most_retained: int = 1024,
) -> tuple[Int[Array, "B N E"], Float[Array, "B N E"]]:
    """``argmax_r cos(evicted_e, retained_r)`` over the retained that exist, and its value.

    A profile of norm 0 has cosine 0 with every other. Of equal cosines the first wins. If none
    exists the cosine is -inf. The E x R matrix exists in blocks only.
    """
    size, columns = evicted.shape[-1], retained.shape[-1]
    rows = block_size(size, most_evicted)
    width = block_size(columns, most_retained)
    evicted, retained = _unit(evicted), _unit(retained)

    def best_of(row):
        own = jax.lax.dynamic_slice_in_dim(evicted, row * rows, rows, axis=3)

        def next_block(best, column):
            place, cosine = best
            other = jax.lax.dynamic_slice_in_dim(retained, column * width, width, axis=3)
            exists = jax.lax.dynamic_slice_in_dim(is_retained, column * width, width, axis=2)
            # Six numbers a profile: anything less than float32 products would decide wrongly.
            cosines = jnp.einsum("dbne,dbnr->bner", own, other, precision=jax.lax.Precision.HIGHEST)
            cosines = jnp.where(exists[:, :, None], cosines, -jnp.inf)
            here = jnp.argmax(cosines, axis=-1).astype(jnp.int32) + column * width
            highest = jnp.max(cosines, axis=-1)
            is_better = highest > cosine
            return (jnp.where(is_better, here, place), jnp.where(is_better, highest, cosine)), None

        start = jnp.zeros(own.shape[1:], jnp.int32)
        blocks = jnp.arange(columns // width, dtype=jnp.int32)
        return jax.lax.scan(next_block, (start, jnp.full(start.shape, -jnp.inf)), blocks)[0]

    best = jax.lax.map(best_of, jnp.arange(size // rows, dtype=jnp.int32))
    place, cosine = (jnp.moveaxis(x, 0, 2).reshape(*x.shape[1:3], size) for x in best)
    return place, cosine


def _unit(profile: Float[Array, "delta B N X"]) -> Float[Array, "delta B N X"]:
    norm = jnp.linalg.norm(profile, axis=0, keepdims=True)
    return jnp.where(norm > 0, profile / norm, 0.0)


@functools.partial(jax.jit, static_argnames="most_channels")
def merge_values(
    v: Float[Array, "B N S H"],
    weight: Float[Array, "delta B N S"],
    source: Int[Array, "B N E"],
    target: Int[Array, "B N E"],
    is_merged: Bool[Array, "B N E"],
    *,
    most_channels: int = 32,
) -> Float[Array, "B N S H"]:
    """Value i becomes ``mean_delta (a_i V_i + sum_j a_j V_j) / (a_i + sum_j a_j)``, a = a[delta].

    j runs over the sources merged into i. That is ``c_i V_i + sum_j c_j V_j`` with
    ``c_j = mean_delta a_j / (a_i + sum_j a_j)``: coefficients are worked out first, then values
    are read once. A step of the horizon that gives all of them weight 0 leaves V_i. Every value
    that is no target keeps its bits. Sums in float32.
    """
    width = block_size(v.shape[-1], most_channels)
    per_head = lambda v, *rest: _merge_head(v, *rest, width=width)
    axes = (0, 1, 0, 0, 0)
    return jax.vmap(jax.vmap(per_head, axes), axes)(v, weight, source, target, is_merged)


def _merge_head(
    v: Float[Array, "S H"],
    weight: Float[Array, "delta S"],
    source: Int[Array, " E"],
    target: Int[Array, " E"],
    is_merged: Bool[Array, " E"],
    width: int,
) -> Float[Array, "S H"]:
    num_slots, head_dim = v.shape
    pairs = jnp.arange(source.shape[0], dtype=jnp.int32)
    nowhere = jnp.int32(num_slots)
    into = jnp.where(is_merged, target, nowhere)
    given = jnp.where(is_merged, weight[:, source], 0.0)
    total = weight.at[:, into].add(given, mode="drop")[:, target]
    share = lambda part: jnp.where(total > 0, part / total, 0.0)
    c_source = jnp.mean(share(given), axis=0)
    c_target = jnp.mean(jnp.where(total > 0, weight[:, target] / total, 1.0), axis=0)

    # All sources of a target add up in the row of the first of them, its leader.
    none = jnp.full((num_slots,), pairs.shape[0], jnp.int32)
    leader = none.at[into].min(pairs, mode="drop")[target]
    row = jnp.where(is_merged, leader, pairs.shape[0])
    written = jnp.where(is_merged & (leader == pairs), target, nowhere)

    # Blocks of channels bound what is temporary. As rows of a reshaped buffer they can be read and
    # written in place, where a slice would be a copy.
    blocks = head_dim // width

    def next_block(rows: Float[Array, "rows width"], block: Array):
        values = rows[source * blocks + block].astype(jnp.float32)
        # `where`: an empty slot may hold NaN.
        parts = jnp.where(is_merged[:, None], c_source[:, None] * values, 0.0)
        own = rows[target * blocks + block].astype(jnp.float32) * c_target[:, None]
        sums = jnp.zeros_like(parts).at[row].add(parts, mode="drop") + own
        return rows.at[written * blocks + block].set(sums.astype(v.dtype), mode="drop"), None

    rows = v.reshape(num_slots * blocks, width)
    rows, _ = jax.lax.scan(next_block, rows, jnp.arange(blocks, dtype=jnp.int32))
    return rows.reshape(v.shape)
