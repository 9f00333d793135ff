"""The definition of routing and merging (Future Forcing, arXiv 2605.30083, Eq. 3)."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vidcache_jax.ops.blocks import block_size


# Jitted, or a call outside of jit would compile its loops anew.
@functools.partial(jax.jit, static_argnames=("most_evicted", "most_retained"))
def route(
    evicted: Float[Array, "B N delta E"],
    retained: Float[Array, "B N delta R"],
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
            cosines = jnp.einsum("bnde,bndr->bner", own, other, precision=jax.lax.Precision.HIGHEST)
            cosines = jnp.where(exists[:, :, None], cosines, -jnp.inf)
            here = jnp.argmax(cosines, axis=-1).astype(jnp.int32) + column * width
            highest = jnp.max(cosines, axis=-1)
            is_better = highest > cosine
            return (jnp.where(is_better, here, place), jnp.where(is_better, highest, cosine)), None

        start = jnp.zeros((*own.shape[:2], rows), jnp.int32)
        blocks = jnp.arange(columns // width, dtype=jnp.int32)
        return jax.lax.scan(next_block, (start, jnp.full(start.shape, -jnp.inf)), blocks)[0]

    best = jax.lax.map(best_of, jnp.arange(size // rows, dtype=jnp.int32))
    place, cosine = (jnp.moveaxis(x, 0, 2).reshape(*x.shape[1:3], size) for x in best)
    return place, cosine


def _unit(profile: Float[Array, "B N delta X"]) -> Float[Array, "B N delta X"]:
    norm = jnp.linalg.norm(profile, axis=2, keepdims=True)
    return jnp.where(norm > 0, profile / norm, 0.0)


@functools.partial(jax.jit, static_argnames="most_pairs")
def merge_values(
    v: Float[Array, "B N S H"],
    weight: Float[Array, "B N delta S"],
    source: Int[Array, "B N E"],
    target: Int[Array, "B N E"],
    is_merged: Bool[Array, "B N E"],
    *,
    most_pairs: int = 256,
) -> Float[Array, "B N S H"]:
    """Value i becomes ``mean_delta (a_i V_i + sum_j a_j V_j) / (a_i + sum_j a_j)``, a = a[delta].

    j runs over the sources merged into i. That is ``c_i V_i + sum_j c_j V_j`` with
    ``c_j = mean_delta a_j / (a_i + sum_j a_j)``: coefficients are worked out first, then values
    are read once, in blocks of pairs that bound what is temporary. A step of the horizon that gives
    all of them weight 0 leaves V_i. Every value that is no target keeps its bits. Sums in float32.
    """
    per_head = functools.partial(_merge_head, most_pairs=most_pairs)
    return jax.vmap(jax.vmap(per_head))(v, weight, source, target, is_merged)


def _merge_head(
    v: Float[Array, "S H"],
    weight: Float[Array, "delta S"],
    source: Int[Array, " E"],
    target: Int[Array, " E"],
    is_merged: Bool[Array, " E"],
    most_pairs: int,
) -> Float[Array, "S H"]:
    num_slots, num_pairs = v.shape[0], source.shape[0]
    nowhere = jnp.int32(num_slots)
    # Pairs of one target become neighbours; those that do not count come last.
    pairs = (jnp.where(is_merged, target, nowhere), source)
    target, source = jax.lax.sort(pairs, num_keys=2, is_stable=False)
    is_merged = target < nowhere

    given = jnp.where(is_merged, weight[:, source], 0.0)
    total = weight.at[:, target].add(given, mode="drop", indices_are_sorted=True)[:, target]
    share = lambda part: jnp.where(total > 0, part / total, 0.0)
    c_source = jnp.mean(share(given), axis=0)
    c_target = jnp.mean(jnp.where(total > 0, weight[:, target] / total, 1.0), axis=0)
    is_last = target != jnp.append(target[1:], nowhere)

    size = block_size(num_pairs, most_pairs)

    def next_block(carry, index: Array):
        v, last_target, last_sum = carry
        of = lambda x: jax.lax.dynamic_slice_in_dim(x, index * size, size)
        into, counts = of(target), of(is_merged)[:, None]
        # `where`: an empty slot may hold NaN.
        parts = jnp.where(counts, of(c_source)[:, None] * v[of(source)].astype(jnp.float32), 0.0)
        # The sum over all pairs of the block with the same target, and what came before it.
        is_same = (into[:, None] == into[None]).astype(jnp.float32)
        sums = jnp.matmul(is_same, parts, precision=jax.lax.Precision.HIGHEST)
        sums += jnp.where((into == last_target)[:, None], last_sum, 0.0)
        own = of(c_target)[:, None] * v[into].astype(jnp.float32)
        written = jnp.where(of(is_last), into, nowhere)
        v = v.at[written].set((own + sums).astype(v.dtype), mode="drop")
        return (v, into[-1], sums[-1]), None

    start = (v, nowhere, jnp.zeros(v.shape[1:], jnp.float32))
    (v, _, _), _ = jax.lax.scan(next_block, start, jnp.arange(num_pairs // size, dtype=jnp.int32))
    return v
