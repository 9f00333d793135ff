"""The definition of routing and merging (Future Forcing, arXiv 2605.30083, Eq. 3)."""

import functools

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from vidcache_jax.ops.blocks import block_size


# Jitted, or a call outside of jit would compile its loops anew.
@functools.partial(jax.jit, static_argnames=("most_evicted", "most_retained"))
def route(
    evicted: Float[Array, "B N delta E"],
    retained: Float[Array, "B N delta R"],
    rank: Int[Array, "B N R"],
    *,
    most_evicted: int = 256,
    most_retained: int = 512,
) -> tuple[Int[Array, "B N E"], Float[Array, "B N E"]]:
    """Rank of ``argmax_r cos(evicted_e, retained_r)`` over the retained with one, and the cosine.

    A profile of norm 0 has cosine 0 with every other. Of equal cosines the lowest rank wins. If
    none is retained the cosine is -inf. The E x R matrix exists in blocks only.
    """
    size, columns = evicted.shape[-1], retained.shape[-1]
    rows = block_size(size, most_evicted)
    width = block_size(columns, most_retained)
    nothing = jnp.iinfo(jnp.int32).max

    def block_of(x: Array, index: Array, size: int) -> Array:
        return jax.lax.dynamic_slice_in_dim(x, index * size, size, axis=x.ndim - 1)

    def best_of(row):
        own = _unit(block_of(evicted, row, rows))

        def next_block(best, column):
            lowest, cosine = best
            # Ranks that are not negative, of those that are retained.
            ranks = block_of(rank, column, width)
            ranks = jnp.where(ranks < 0, nothing, ranks)[:, :, None]
            other = _unit(block_of(retained, column, width))
            # Six numbers a profile: anything less than float32 products would decide wrongly.
            cosines = jnp.einsum("bnde,bndr->bner", own, other, precision=jax.lax.Precision.HIGHEST)
            cosines = jnp.where(ranks < nothing, cosines, -jnp.inf)
            highest = jnp.max(cosines, axis=-1)
            first = jnp.min(jnp.where(cosines == highest[..., None], ranks, nothing), axis=-1)
            first = jnp.where(highest < cosine, nothing, first)
            lowest = jnp.where(highest > cosine, first, jnp.minimum(lowest, first))
            return (lowest, jnp.maximum(highest, cosine)), None

        start = jnp.full((*own.shape[:2], rows), nothing)
        blocks = jnp.arange(columns // width, dtype=jnp.int32)
        return jax.lax.scan(next_block, (start, jnp.full(start.shape, -jnp.inf)), blocks)[0]

    best = jax.lax.map(best_of, jnp.arange(size // rows, dtype=jnp.int32))
    nearest, cosine = (jnp.moveaxis(x, 0, 2).reshape(*x.shape[1:3], size) for x in best)
    return jnp.where(nearest == nothing, 0, nearest), cosine


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

    is_last = target != jnp.append(target[1:], nowhere)
    given, own = jnp.where(is_merged, weight[:, source], 0.0), weight[:, target]
    size = block_size(num_pairs, most_pairs)
    total = own + _sums_of_runs(given, target, size)
    share = lambda part, otherwise: jnp.where(total > 0, part / total, otherwise)
    c_source, c_target = jnp.mean(share(given, 0.0), axis=0), jnp.mean(share(own, 1.0), axis=0)

    def next_block(carry, index: Array):
        v, last_target, last_sum = carry
        of = lambda x: jax.lax.dynamic_slice_in_dim(x, index * size, size)
        into, counts = of(target), of(is_merged)[:, None]
        # `where`: an empty slot may hold NaN.
        parts = jnp.where(counts, of(c_source)[:, None] * v[of(source)].astype(jnp.float32), 0.0)
        # The sum over all pairs of the block with the same target, and what came before it.
        sums = _exact(_is_same(into), parts)
        sums += jnp.where((into == last_target)[:, None], last_sum, 0.0)
        own = of(c_target)[:, None] * v[into].astype(jnp.float32)
        written = jnp.where(of(is_last), into, nowhere)
        v = v.at[written].set((own + sums).astype(v.dtype), mode="drop")
        return (v, into[-1], sums[-1]), None

    start = (v, nowhere, jnp.zeros(v.shape[1:], jnp.float32))
    (v, _, _), _ = jax.lax.scan(next_block, start, jnp.arange(num_pairs // size, dtype=jnp.int32))
    return v


def _sums_of_runs(
    x: Float[Array, "delta E"], label: Int[Array, " E"], size: int
) -> Float[Array, "delta E"]:
    """Of each entry, the sum over the run of equal labels that it is in, in blocks of ``size``.

    A scatter into sums would do, but TPU programs sort its indices once more, and take long to
    compile that.
    """
    labels, parts = label.reshape(-1, size), rearrange(x, "delta (n e) -> n delta e", e=size)
    inside = jax.lax.map(lambda block: _exact(block[0], _is_same(block[1])), (parts, labels))

    def from_blocks(edge: int) -> Float[Array, "n delta e"]:
        """What the blocks before (edge -1) or after (0) add to the runs that reach into a block."""

        def next_block(carry, block):
            (last_label, last_sum), (own_labels, own_sums) = carry, block
            more = jnp.where(own_labels == last_label, last_sum[:, None], 0.0)
            return (own_labels[edge], (own_sums + more)[:, edge]), more

        start = (label[0], jnp.zeros(x.shape[:1], x.dtype))
        return jax.lax.scan(next_block, start, (labels, inside), reverse=edge == 0)[1]

    return rearrange(inside + from_blocks(-1) + from_blocks(0), "n delta e -> delta (n e)")


def _is_same(label: Int[Array, " e"]) -> Float[Array, "e e"]:
    return (label[:, None] == label[None]).astype(jnp.float32)


def _exact(x: Float[Array, "i j"], y: Float[Array, "j k"]) -> Float[Array, "i k"]:
    return jnp.matmul(x, y, precision=jax.lax.Precision.HIGHEST)
