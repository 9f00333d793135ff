"""Attention column means for TPUs in Pallas (Mosaic); formulas in `ref`.

    grid  (video, head, step ahead, block of queries, pass, block of keys)

A block of queries meets all keys twice: once for its softmax residuals, once to add what it gives
to the column sums, which stay on the chip for all blocks of queries of a step. Residuals never
leave the chip, logits neither. Where the residuals are known there is one pass.

Queries lie along sublanes and keys along lanes, so that column sums reduce over sublanes into
rows. The running maximum and denominator of pass 1 are kept for each of the 128 lanes by itself,
as if a query had 128 softmaxes; lanes are merged once, after its last block of keys.

Rotation before it, and the means of what it sums, are in `rotated`.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float, Int

from vidcache_jax.ops.attention import AttentionPart
from vidcache_jax.ops.mosaic import (
    LANES,
    LOG2_E,
    LOWEST,
    SUBLANES,
    VMEM_LIMIT,
    round_up,
    size_of_a_token,
)
from vidcache_jax.ops.scoring.ref import ColumnMeans
from vidcache_jax.ops.scoring.rotated import Scored, means_of, scored


class Tiling(NamedTuple):
    """Sizes of what is on the chip at once."""

    queries: int
    """Of a grid step; a multiple of 8."""
    keys: int
    """Of a grid step; a multiple of 128."""
    piece: int
    """Keys whose logits are formed together; a multiple of 128."""


def choose_tiling(num_queries: int, num_keys: int, head_dim: int, dtype: jnp.dtype) -> Tiling:
    """Blocks of queries of equal size, and blocks of keys, both with little to fill up."""
    query_blocks = -(-num_queries // (1664 // size_of_a_token(head_dim, dtype)))
    sizes = range(768, 1536 + 1, LANES)
    keys = min(sizes, key=lambda size: (round_up(num_keys, size), -size))
    return Tiling(
        queries=round_up(-(-num_queries // query_blocks), SUBLANES),
        keys=min(keys, round_up(num_keys, LANES)),
        piece=256,
    )


def column_means(
    q: Float[Array, "B N T H"],
    q_position: Int[Array, "B G T 3"],
    k: Float[Array, "B N S H"],
    k_position: Int[Array, "B G S 3"],
    visible: Bool[Array, "B G S"],
    attended: AttentionPart | None = None,
    *,
    ahead: tuple[int, ...] = (0,),
    tiling: Tiling | None = None,
    interpret: bool | pltpu.InterpretParams = False,
) -> ColumnMeans:
    """`ref.column_means`, for heads that suit a kernel (`mosaic`); it has no gradient.

    Args:
      tiling: None for `choose_tiling`'s.
      interpret: run the kernel's operations on any device, slowly, for tests; with
        InterpretParams on a simulated TPU.
    """
    sums = functools.partial(column_sums, tiling=tiling, interpret=interpret)

    def heads_first(x: Array) -> Array:
        return jnp.moveaxis(jnp.broadcast_to(x, (x.shape[0], q.shape[1], *x.shape[2:])), 1, 0)

    def of_a_head(own: Scored) -> ColumnMeans:
        return means_of(jax.tree.map(lambda x: x[:, None], own), sums)

    # Head after head: a rotated copy of all keys would be as large as the keys.
    given = scored(q, q_position, k, k_position, visible, attended, ahead)
    means = jax.lax.map(of_a_head, jax.tree.map(heads_first, given))
    return jax.tree.map(lambda x: jnp.moveaxis(x[:, :, 0], 0, 1), means)


def column_sums(
    q: Float[Array, "B N delta T H"],
    k: Float[Array, "B N S H"],
    visible: Bool[Array, "B G S"],
    log_sum: Float[Array, "B N T"] | None = None,
    *,
    tiling: Tiling | None = None,
    interpret: bool | pltpu.InterpretParams = False,
) -> Float[Array, "B N delta S"]:
    """Softmax weight that each key receives from all queries of a step; anything if not visible.

    Args:
      q, k: already rotated by RoPE.
      log_sum: log of the sum of exponentials of each query's logits, if known, of one step; pass 1
        is left out.
    """
    batch, num_heads, horizon, num_queries, head_dim = q.shape
    num_keys = k.shape[2]
    tiling = tiling or choose_tiling(num_queries, num_keys, head_dim, q.dtype)
    query_blocks, key_blocks = -(-num_queries // tiling.queries), -(-num_keys // tiling.keys)
    num_passes = 2 if log_sum is None else 1
    padding = (0, query_blocks * tiling.queries - num_queries)
    q = jnp.pad(q, ((0, 0), (0, 0), (0, 0), padding, (0, 0)))
    table = jnp.pad(visible, ((0, 0), (0, 0), (0, key_blocks * tiling.keys - num_keys)))
    counts = jnp.sum(
        table.reshape(*table.shape[:2], key_blocks, tiling.keys), axis=-1, dtype=jnp.int32
    )

    own = lambda head: head if visible.shape[1] > 1 else 0
    query_block = lambda b, n, d, i, *_: (b, n, d, i, 0)
    key_block = lambda b, n, d, i, p, j, _: (b, n, j, 0)
    visible_block = lambda b, n, d, i, p, j, _: (b, own(n), 0, j)
    specs = [
        pl.BlockSpec((None, None, None, tiling.queries, head_dim), query_block),
        pl.BlockSpec((None, None, tiling.keys, head_dim), key_block),
        pl.BlockSpec((None, None, 1, tiling.keys), visible_block),
    ]
    arrays = [q, k, table.astype(jnp.int32)[:, :, None]]
    if log_sum is not None:
        known = jnp.pad(log_sum, ((0, 0), (0, 0), padding), constant_values=jnp.inf)
        log_sum_block = lambda b, n, d, i, *_: (b, n, i, 0, 0)
        specs.append(pl.BlockSpec((None, None, None, 1, tiling.queries), log_sum_block))
        arrays.append(known.reshape(batch, num_heads, query_blocks, 1, tiling.queries))
    statistic = pltpu.VMEM((tiling.queries, LANES), jnp.float32)
    pairs = batch * num_heads * horizon * num_queries * num_keys
    sums = pl.pallas_call(
        functools.partial(_kernel, tiling=tiling, num_queries=num_queries, key_blocks=key_blocks),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(batch, num_heads, horizon, query_blocks, num_passes, key_blocks),
            in_specs=specs,
            out_specs=pl.BlockSpec(
                (None, None, None, key_blocks, 1, tiling.keys),
                lambda b, n, d, *_: (b, n, d, 0, 0, 0),
            ),
            scratch_shapes=[statistic, statistic],
        ),
        out_shape=jax.ShapeDtypeStruct(
            (batch, num_heads, horizon, key_blocks, 1, tiling.keys), jnp.float32
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",) * 3 + ("arbitrary",) * 3,
            vmem_limit_bytes=VMEM_LIMIT,
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * num_passes * pairs * head_dim,
            transcendentals=num_passes * pairs,
            bytes_accessed=num_passes * query_blocks * horizon * k.nbytes + q.nbytes,
        ),
        interpret=interpret,
        name="column_means",
    )(counts, *arrays)
    return sums.reshape(batch, num_heads, horizon, -1)[..., :num_keys]


def _kernel(counts, q, k, visible, *rest, tiling: Tiling, num_queries: int, key_blocks: int):
    """One block of queries against one block of keys, in one of the passes.

    ``top`` and ``total`` [queries, 128] are the largest logit and the denominator of each lane in
    pass 1; afterwards every lane of ``top`` holds the log of the whole denominator, base 2.
    """
    *known, sums, top, total = rest
    video, head, block, is_last_pass, key_block = (
        pl.program_id(0), pl.program_id(1), pl.program_id(3),
        pl.program_id(4) == pl.num_programs(4) - 1, pl.program_id(5),
    )  # fmt: skip
    sees = counts[video, head if counts.shape[1] > 1 else 0, key_block] > 0
    scale = q.shape[-1] ** -0.5 * LOG2_E
    # The MXU's default would round float32 operands to bfloat16.
    precision = jax.lax.Precision.HIGHEST if q.dtype == jnp.float32 else None
    pieces = [
        (start, min(tiling.piece, tiling.keys - start))
        for start in range(0, tiling.keys, tiling.piece)
    ]

    def products(start, size):
        return jax.lax.dot_general(
            q[...], k[start : start + size], (((1,), (1,)), ((), ())),
            precision=precision, preferred_element_type=jnp.float32,
        )  # fmt: skip

    @pl.when((block == 0) & (pl.program_id(4) == 0) & (key_block == 0))
    def clear_sums():
        sums[...] = jnp.zeros_like(sums)

    if known:

        @pl.when(key_block == 0)
        def take():
            row = known[0][...] * LOG2_E
            top[...] = jnp.broadcast_to(row, (LANES, tiling.queries)).T

    else:

        @pl.when(~is_last_pass & (key_block == 0))
        def clear():
            top[...] = jnp.full_like(top, LOWEST)
            total[...] = jnp.zeros_like(total)

        @pl.when(~is_last_pass & sees)
        def add_to_residuals():
            m, l = top[...], total[...]
            for start, size in pieces:
                # -inf against a maximum that is finite from the start: never a difference of
                # infinities.
                z = jnp.where(visible[:, start : start + size] > 0, products(start, size), -jnp.inf)
                lanes = [z[:, at : at + LANES] for at in range(0, size, LANES)]
                m_new = functools.reduce(jnp.maximum, lanes, m)
                l = l * jnp.exp2((m - m_new) * scale)
                l = functools.reduce(jnp.add, (jnp.exp2((x - m_new) * scale) for x in lanes), l)
                m = m_new
            top[...], total[...] = m, l

        @pl.when(~is_last_pass & (key_block == key_blocks - 1))
        def merge_lanes():
            m, l = top[...], total[...]
            largest = jnp.max(m, axis=1, keepdims=True)
            whole = jnp.sum(l * jnp.exp2((m - largest) * scale), axis=1, keepdims=True)
            row = jax.lax.broadcasted_iota(jnp.int32, whole.shape, 0) + block * tiling.queries
            gives = (whole > 0) & (row < num_queries)
            residual = jnp.where(gives, largest * scale + jnp.log2(whole), jnp.inf)
            top[...] = jnp.broadcast_to(residual, top.shape)

    @pl.when(is_last_pass & sees)
    def add_to_sums():
        residual = top[...]
        for start, size in pieces:
            z = products(start, size)
            for at in range(0, size, LANES):
                weight = jnp.exp2(z[:, at : at + LANES] * scale - residual)
                columns = slice(start + at, start + at + LANES)
                sums[key_block, :, columns] += jnp.sum(weight, axis=0, keepdims=True)
