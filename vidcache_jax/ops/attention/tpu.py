"""Flash attention for TPUs in Pallas (Mosaic).

    grid  (video, head, block of queries, step)

The last axis visits blocks of keys. Tables in scalar memory, there before the kernel starts, say
which: the blocks with a key that counts, in order; steps left over stay at the last block, which
costs neither a copy nor arithmetic. One compiled kernel thus serves every window, every choice of
slots and every length, and does only the work that counts. The layer is such a scalar as well:
blocks come straight out of the stack of all layers. Where slots are single tokens, a row beside
each block of keys says which of them count.

Keys lie along sublanes and queries along lanes: logits are ``k q^T`` [keys, queries]. A latent
frame of Wan at 480 x 832 is 1560 = 8 * 195 tokens, which fills sublanes exactly (lanes would be
padded to 1664), and the softmax reduces over sublanes into rows. The accumulator is ``v^T p``
[H, queries], transposed once per block of queries.

The online softmax is FlashAttention's (https://arxiv.org/abs/2205.14135), in base 2. Tile sizes
are those for which the TPU compiler schedules the fewest instructions per FLOP
(scripts/compile_tpu.py); nobody has timed them on a TPU yet.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float, Int

from vidcache_jax.array_typing import Heads
from vidcache_jax.ops.attention.keys import Keys
from vidcache_jax.ops.attention.ref import AttentionPart
from vidcache_jax.ops.mosaic import (
    LANES,
    LOG2_E,
    LOWEST,
    SUBLANES,
    VMEM_LIMIT,
    reason_against_heads,
    round_up,
    size_of_a_token,
)


class Tiling(NamedTuple):
    """Sizes of what is on the chip at once."""

    queries: int
    """Of a grid step; a multiple of 128."""
    keys: int
    """Of a grid step; a multiple of 8. A block never straddles two runs of keys."""
    piece: int
    """Keys whose logits are formed together; the next piece's overlap with this one's softmax."""


class Visits(NamedTuple):
    """What each step of a (video, head) does, [#B, #N, steps] unless said."""

    count: Int[Array, "#B #N"]
    """Steps that do anything."""
    block: Int[Array, "#B #N steps"]
    """Which block of keys is there."""
    length: Int[Array, "#B #N steps"]
    """How many of its keys count, the first ones."""
    bias: Float[Array, "#B #N steps"]
    """What is added to its logits."""


def reason_against(q: Heads, keys: Keys) -> str | None:
    """Why the kernel cannot do this, None if it can."""
    if keys.visible is not None:
        return "a mask per query or per key is not supported; say what counts by slots or lengths"
    if not q.dtype == keys.k.dtype == keys.v.dtype:
        return f"q, k, v of one dtype are needed, not {q.dtype}, {keys.k.dtype}, {keys.v.dtype}"
    if reason := reason_against_heads(q):
        return reason
    if _token_mask(keys) is not None:
        return None if keys.bias is None else "a bias of single keys is not supported"
    if keys.num_runs > 1 and keys.run_size % SUBLANES != 0:
        return f"slots of {keys.run_size} keys do not end at a multiple of {SUBLANES}"
    return None


def choose_tiling(q: Heads, keys: Keys) -> Tiling:
    """Blocks of queries that waste few lanes, blocks of keys that divide a run if any do."""
    if _token_mask(keys) is not None:
        keys = dataclasses.replace(keys, slots=None)
    most_queries, most_keys = 1664 // size_of_a_token(q.shape[-1], q.dtype), 2048
    num_queries = q.shape[2]
    per_block = -(-num_queries // -(-num_queries // most_queries))
    sizes = range(SUBLANES, min(keys.run_size, most_keys) + 1, SUBLANES)
    block = max((size for size in sizes if keys.run_size % size == 0), default=0)
    if keys.num_runs == 1 and block < most_keys // 4:
        block = min(most_keys, round_up(keys.run_size, SUBLANES))
    return Tiling(round_up(per_block, LANES), block, 512)


def attention(
    q: Heads,
    keys: Keys,
    tiling: Tiling | None = None,
    interpret: bool | pltpu.InterpretParams = False,
) -> AttentionPart:
    """The kernel, for what `reason_against` has nothing against; it has no gradient.

    Args:
      tiling: None for `choose_tiling`'s.
      interpret: run the kernel's operations on any device, slowly, for tests; with
        InterpretParams on a simulated TPU.
    """
    batch, num_heads, num_queries, head_dim = q.shape
    tiling = tiling or choose_tiling(q, keys)
    visits = plan_visits(keys, tiling.keys)
    layer = jnp.zeros((), jnp.int32) if keys.layer is None else keys.layer.astype(jnp.int32)
    k, v = (x[None] if keys.layer is None else x for x in (keys.k, keys.v))

    def key_block(b, n, i, step, layer, count, block, *_):
        row = _row(count, b, n)
        last = jnp.maximum(count[row] - 1, 0)
        return layer[0], b, n, block[(*row, jnp.minimum(step, last))], 0

    query_block = lambda b, n, i, *_: (b, n, i, 0)
    statistic_block = lambda b, n, i, *_: (b, n, 0, i)
    key_spec = pl.BlockSpec((None, None, None, tiling.keys, head_dim), key_block)
    query_spec = pl.BlockSpec((None, None, tiling.queries, head_dim), query_block)
    statistic_spec = pl.BlockSpec((None, None, 1, tiling.queries), statistic_block)
    specs, arrays = [query_spec, key_spec, key_spec], [q, k, v]
    num_steps, tokens = visits.block.shape[-1], _token_mask(keys)
    if tokens is not None:
        tokens = _in_blocks(tokens, num_steps, tiling.keys)[..., None, :]

        def token_block(b, n, i, step, *tables):
            return *_row(tokens, b, n), key_block(b, n, i, step, *tables)[3], 0, 0

        specs.append(pl.BlockSpec((None, None, None, 1, tiling.keys), token_block))
        arrays.append(jnp.where(tokens, 0.0, -jnp.inf))
    statistic = jax.ShapeDtypeStruct((batch, num_heads, 1, num_queries), jnp.float32)
    out, maximum, denominator = pl.pallas_call(
        functools.partial(
            _kernel, tiling=tiling, is_ragged=_is_ragged(keys, tiling), num_steps=num_steps
        ),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1 + len(visits),
            grid=(batch, num_heads, -(-num_queries // tiling.queries), num_steps),
            in_specs=specs,
            out_specs=[query_spec, statistic_spec, statistic_spec],
            scratch_shapes=[
                pltpu.VMEM((head_dim, tiling.queries), jnp.float32),
                pltpu.VMEM((1, tiling.queries), jnp.float32),
                pltpu.VMEM((1, tiling.queries), jnp.float32),
            ],
        ),
        out_shape=[jax.ShapeDtypeStruct(q.shape, jnp.float32), statistic, statistic],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel", "arbitrary"),
            vmem_limit_bytes=VMEM_LIMIT,
        ),
        cost_estimate=_cost(q, keys),
        interpret=interpret,
        name="cached_attention",
    )(layer[None], *visits, *arrays)
    return AttentionPart(out, maximum[:, :, 0], denominator[:, :, 0])


def plan_visits(keys: Keys, block_size: int) -> Visits:
    """Blocks with keys that count, in order, then the others."""
    tokens = _token_mask(keys)
    if tokens is not None:
        keys = dataclasses.replace(keys, slots=None)
    per_run = -(-keys.run_size // block_size)
    start = jnp.arange(per_run, dtype=jnp.int32) * block_size
    end = keys.run_lengths()[..., None]
    length = jnp.clip(end - start[None, None, None], 0, block_size)
    bias = jnp.zeros((1, 1, keys.num_runs)) if keys.bias is None else keys.bias
    bias = jnp.repeat(bias.astype(jnp.float32), per_run, axis=-1)
    num_steps = keys.num_runs * per_run
    length = length.reshape(*length.shape[:2], num_steps)
    if tokens is not None:
        counts = jnp.any(_in_blocks(tokens, num_steps, block_size), axis=-1)
        length = jnp.where(counts, length, 0)
    shape = jnp.broadcast_shapes(length.shape, bias.shape)
    length, bias = jnp.broadcast_to(length, shape), jnp.broadcast_to(bias, shape)
    block = jnp.argsort(length == 0, axis=-1, stable=True).astype(jnp.int32)
    in_order = lambda table: jnp.take_along_axis(table, block, axis=-1)
    count = jnp.sum(length > 0, axis=-1, dtype=jnp.int32)
    return Visits(count, block, in_order(length), in_order(bias))


def _token_mask(keys: Keys) -> Bool[Array, "#B #N S"] | None:
    """Which keys count, where slots are single tokens; None where they are not."""
    if keys.num_runs == 1 or keys.run_size > 1:
        return None
    mask = keys.mask()
    return None if mask is None else mask[:, :, 0]


def _in_blocks(
    tokens: Bool[Array, "#B #N S"], num_blocks: int, block_size: int
) -> Bool[Array, "#B #N blocks keys"]:
    padding = num_blocks * block_size - tokens.shape[-1]
    return jnp.pad(tokens, ((0, 0), (0, 0), (0, padding))).reshape(
        *tokens.shape[:2], num_blocks, block_size
    )


def _is_ragged(keys: Keys, tiling: Tiling) -> bool:
    """Whether a block may end in keys that do not count; else no step has to mask any."""
    if _token_mask(keys) is not None:
        return False
    return keys.lengths is not None or keys.run_size % tiling.keys != 0


def _kernel(
    layer, count, block, length, bias, q, k, v, *others,
    tiling: Tiling, is_ragged: bool, num_steps: int,
):  # fmt: skip
    """One block of keys against one block of queries.

    Where slots are single tokens a row follows v: 0, or -inf for keys that do not count.

    ``acc`` [H, queries], ``top`` and ``total`` [1, queries] are the sums of FlashAttention:
    unnormalised output, largest logit, denominator.
    """
    del layer, block
    *hidden, out, maximum, denominator, acc, top, total = others
    video, head, step = pl.program_id(0), pl.program_id(1), pl.program_id(3)
    row = _row(count, video, head)
    scale = q.shape[-1] ** -0.5
    # The MXU's default would round float32 operands to bfloat16.
    precision = jax.lax.Precision.HIGHEST if q.dtype == jnp.float32 else None
    dot = functools.partial(
        jax.lax.dot_general, precision=precision, preferred_element_type=jnp.float32
    )
    pieces = [
        (start, min(tiling.piece, tiling.keys - start))
        for start in range(0, tiling.keys, tiling.piece)
    ]

    @pl.when(step == 0)
    def clear():
        acc[...] = jnp.zeros_like(acc)
        # Finite in base 2 as well: of single tokens, nothing may count in a block's first piece.
        top[...] = jnp.full_like(top, LOWEST / 2)
        total[...] = jnp.zeros_like(total)

    @pl.when(step < count[row])
    def add_block():
        own_length, own_bias = length[(*row, step)], bias[(*row, step)]
        counts = lambda start, like: (
            start + jax.lax.broadcasted_iota(jnp.int32, like.shape, 0) < own_length
        )

        def column(start, size, like):
            """What ``hidden`` says of each key, as wide as what it is for."""
            width = like.shape[1]
            lanes = jnp.broadcast_to(hidden[0][:, start : start + size], (LANES, size)).T
            return jnp.concatenate([lanes] * -(-width // LANES), axis=1)[:, :width]

        def counted(x, start, size):
            """Rows of keys or values; 0 for those that do not count, which may be NaN."""
            x = x[start : start + size]
            if not hidden and not is_ragged:
                return x
            seen = column(start, size, x) == 0 if hidden else counts(start, x)
            return jnp.where(seen, x, jnp.zeros((), x.dtype))

        def products(start, size):
            rows = counted(k, start, size) if hidden else k[start : start + size]
            z = dot(rows, q[...], (((1,), (1,)), ((), ())))
            if hidden:
                return z + column(start, size, z)
            # The block's first key counts, so no maximum below is ever that of -inf alone.
            return jnp.where(counts(start, z), z, -jnp.inf) if is_ragged else z

        m, l, o = top[...], total[...], acc[...]
        following = products(*pieces[0])
        for index, (start, size) in enumerate(pieces):
            z = following
            if index + 1 < len(pieces):
                following = products(*pieces[index + 1])
            # 0 * NaN is NaN: values that do not count must not be multiplied at all.
            values = counted(v, start, size)
            m_new = jnp.maximum(m, jnp.max(z, axis=0, keepdims=True) * scale + own_bias)
            decay = jnp.exp2((m - m_new) * LOG2_E)
            p = jnp.exp2(z * (scale * LOG2_E) - (m_new - own_bias) * LOG2_E)
            l = l * decay + jnp.sum(p, axis=0, keepdims=True)
            o = o * decay + dot(values, p.astype(values.dtype), (((0,), (0,)), ((), ())))
            m = m_new
        top[...], total[...], acc[...] = m, l, o

    @pl.when(step == num_steps - 1)
    def finish():
        tiny = jnp.finfo(jnp.float32).tiny
        out[...] = (acc[...] / jnp.maximum(total[...], tiny)).T
        maximum[...], denominator[...] = top[...], total[...]


def _row(table, video, head):
    """Where a (video, head) stands in a table that several of them may share."""
    return (video if table.shape[0] > 1 else 0, head if table.shape[1] > 1 else 0)


def _cost(q: Heads, keys: Keys) -> pl.CostEstimate:
    """What the call takes if every key counts."""
    batch, num_heads, num_queries, head_dim = q.shape
    logits = batch * num_heads * num_queries * keys.num_keys
    cached = 2 * batch * num_heads * keys.num_keys * head_dim * keys.k.dtype.itemsize
    return pl.CostEstimate(
        flops=4 * logits * head_dim,
        transcendentals=logits,
        bytes_accessed=cached + q.size * (q.dtype.itemsize + 4),
    )
