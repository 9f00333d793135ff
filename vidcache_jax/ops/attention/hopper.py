"""Flash attention for Hopper GPUs (H100, H200) in Pallas (Mosaic GPU).

    grid  (head, part of the keys, video, block of queries)

What cuDNN cannot do without copies: keys come straight out of the stack of all layers, each head
has slots or a length of its own, and only blocks of keys that count are visited (`ranges`). Heads
that see most come first, so that no long one is left for the end. One compiled kernel serves every
choice of slots and every length.

Three warpgroups a block: one brings keys and values to shared memory, two have 64 queries each and
take turns, one at the matrix units while the other takes exponentials, as in FlashAttention-3
(https://arxiv.org/abs/2407.08608). With 12 heads the blocks of 4,680 queries are 444, 3.4 times
the 132 multiprocessors of an H200, whose last turn leaves most of them idle: the keys are cut into
parts, merged by their residuals, where that fills them better.

Written without a GPU at hand: the body is tested in Pallas' interpreter of Mosaic GPU and lowered
for CUDA, but has never been run or timed.
"""

import functools
import math
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from vidcache_jax.array_typing import Heads
from vidcache_jax.ops.attention import ref
from vidcache_jax.ops.attention.keys import Keys
from vidcache_jax.ops.attention.ranges import cover, short_values
from vidcache_jax.ops.attention.ref import AttentionPart
from vidcache_jax.ops.mosaic import LOG2_E, LOWEST

QUERIES = 64
"""Of a warpgroup: the rows of a matrix instruction."""
WARPGROUPS = 2
"""That compute."""
MULTIPROCESSORS = 132
"""Of an H100 or H200."""


class Tiling(NamedTuple):
    keys: int = 128
    """Of a block; a multiple of 64."""
    stages: int = 2
    """Blocks in shared memory at once."""
    parts: int | None = None
    """Of the keys, computed side by side; None for what fills the multiprocessors best."""


UNTIMED = Tiling()
"""The sizes that are fastest for an H100 by tokamax's tuning of a kernel of the same plan."""


def reason_against(q: Heads, keys: Keys, tiling: Tiling = UNTIMED) -> str | None:
    """Why the kernel cannot do this, None if it can."""
    if keys.visible is not None:
        return "a mask per query or per key is not supported; say what counts by slots or lengths"
    if not q.dtype == keys.k.dtype == keys.v.dtype:
        return f"q, k, v of one dtype are needed, not {q.dtype}, {keys.k.dtype}, {keys.v.dtype}"
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        return f"bfloat16 or float16 is needed, not {q.dtype}"
    if q.shape[-1] not in (64, 128):
        return f"head_dim={q.shape[-1]} is neither 64 nor 128"
    if keys.run_size < tiling.keys:
        what = "slots of" if keys.num_runs > 1 else "no more than"
        return f"{what} {keys.run_size} keys are less than a block of {tiling.keys}"
    return _reason_against_device()


def _reason_against_device() -> str | None:
    device = jax.devices()[0]
    capability = str(getattr(device, "compute_capability", "9.0"))
    if device.platform == "gpu" and capability.split(".")[0] != "9":
        return f"{device.device_kind} is no Hopper GPU, whose matrix instructions it is made of"
    return None


def attention(
    q: Heads, keys: Keys, tiling: Tiling = UNTIMED, interpret: Any = False
) -> AttentionPart:
    """The kernel, for what `reason_against` has nothing against; it has no gradient.

    Args:
      interpret: JAX's InterpretGPUParams, to simulate a GPU's memory and threads on any device.
    """
    batch, num_heads, num_queries, head_dim = q.shape
    tile = WARPGROUPS * QUERIES
    num_tiles = -(-num_queries // tile)
    # Whoever made q writes the rest too, and whoever takes the result does not read it.
    q = jnp.pad(q, ((0, 0), (0, 0), (0, num_tiles * tile - num_queries), (0, 0)))
    parts = tiling.parts or choose_parts(batch * num_heads * num_tiles)
    operands = _operands(q, keys, tiling)
    statistic = jax.ShapeDtypeStruct((parts, *q.shape[:3]), jnp.float32)

    def body(*refs, **near):
        *given, out, maximum, denominator = refs
        given = dict(zip(operands, given, strict=True))
        results = {"out": out, "maximum": maximum, "denominator": denominator}
        _kernel(SimpleNamespace(**given, **results, **near, is_interpreted=bool(interpret)), parts)

    out, maximum, denominator = plgpu.kernel(
        body,
        out_type=[jax.ShapeDtypeStruct((parts, *q.shape), jnp.float32), statistic, statistic],
        scratch_types=_near(head_dim, q.dtype, tiling),
        grid=(num_heads, parts, batch, num_tiles),
        grid_names=("head", "part", "video", "tile"),
        num_threads=WARPGROUPS + 1,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(
            approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Lane
        ),
        kernel_name="cached_attention",
        interpret=interpret,
    )(*operands.values())
    own = lambda x, i: x[i, :, :, :num_queries]
    each = (AttentionPart(own(out, i), own(maximum, i), own(denominator, i)) for i in range(parts))
    return functools.reduce(ref.merge, each)


def choose_parts(num_blocks: int) -> int:
    """Into how many parts to cut the keys, so that the last turn of the chip is nearly full.

    Blocks come in turns of as many as there are multiprocessors; each part costs a merge.
    """
    shares = []
    for parts in (1, 2, 3):
        turns = parts * num_blocks / MULTIPROCESSORS
        shares.append(turns / math.ceil(turns))
    best = max(shares)
    return next(parts for parts, share in enumerate(shares, 1) if share > best - 0.05)


def _operands(q: Heads, keys: Keys, tiling: Tiling) -> dict[str, jax.Array]:
    """What lies in the GPU's memory, by name."""
    blocks = cover(keys, tiling.keys)
    layer = jnp.zeros((), jnp.int32) if keys.layer is None else keys.layer.astype(jnp.int32)
    k, v = (x[None] if keys.layer is None else x for x in (keys.k, keys.v))
    # Heads that share a row of the tables see the same.
    order = jnp.argsort(-blocks.count, axis=-1, stable=True).astype(jnp.int32)
    operands = {"q": q, "k": k, "v": v, "layer": layer[None], "order": order}
    operands |= {name: getattr(blocks, name) for name in ("whole", "count", "start", "low", "high")}
    if keys.bias is not None:
        operands["bias"] = blocks.bias
    if keys.lengths is not None:
        operands["is_short"] = blocks.is_short.astype(jnp.int32)
        operands["short_v"] = short_values(keys, blocks, tiling.keys)
    return operands


def _near(head_dim: int, dtype: Any, tiling: Tiling) -> dict[str, Any]:
    """What lies in shared memory, by name, and the barriers around it."""
    # What matrix instructions take: tiles of 8 rows of 128 bytes.
    row = 128
    in_tiles = (plgpu.TilingTransform((8, row // dtype.itemsize)), plgpu.SwizzleTransform(row))
    stored = plgpu.SMEM((tiling.stages, tiling.keys, head_dim), dtype, transforms=in_tiles)
    of_stages = functools.partial(plgpu.Barrier, num_barriers=tiling.stages)
    return {
        "near_q": plgpu.SMEM((WARPGROUPS, QUERIES, head_dim), dtype, transforms=in_tiles),
        "near_k": stored,
        "near_v": stored,
        "q_is_here": plgpu.Barrier(num_barriers=WARPGROUPS),
        "k_is_here": of_stages(),
        "v_is_here": of_stages(),
        "k_is_used": of_stages(num_arrivals=WARPGROUPS),
        "v_is_used": of_stages(num_arrivals=WARPGROUPS),
        "turn": plgpu.Barrier(num_arrivals=WARPGROUPS),
    }


def _kernel(r: SimpleNamespace, parts: int) -> None:
    """One block of queries and one part of the keys of its head.

    Args:
      r: the operands, the results and what is near, by name.
    """
    group, part = lax.axis_index("warpgroup"), lax.axis_index("part")
    video = lax.axis_index("video")
    # Videos and heads may share a row of the tables.
    videos, heads = r.count.shape
    table, head = video if videos > 1 else 0, lax.axis_index("head")
    head = r.order[table, head] if heads > 1 else head
    row = table, head if heads > 1 else 0
    count = r.count[row]
    first, last = (lax.div(count * each, jnp.int32(parts)) for each in (part, part + 1))
    where = SimpleNamespace(video=video, head=head, part=part, row=row, first=first, last=last)
    pl.when(group == WARPGROUPS)(functools.partial(_bring, r, where))
    pl.when(group < WARPGROUPS)(functools.partial(_attend, r, where, group))


def _bring(r: SimpleNamespace, where: SimpleNamespace) -> None:
    """Keys and values of each block, as soon as a stage is free."""
    plgpu.set_max_registers(40, action="decrease")
    layer, num_stages, size = r.layer[0], *r.near_k.shape[:2]
    own = (layer, where.video, where.head)

    @pl.loop(where.first, where.last)
    def step(i):
        stage = lax.rem(i - where.first, jnp.int32(num_stages))
        block = (*own, pl.ds(r.start[(*where.row, i)], size))
        is_reused = i - where.first >= num_stages
        k, v = r.near_k.at[stage], r.near_v.at[stage]
        k_is_here, v_is_here = r.k_is_here.at[stage], r.v_is_here.at[stage]

        pl.when(is_reused)(lambda: plgpu.barrier_wait(r.k_is_used.at[stage]))
        plgpu.copy_gmem_to_smem(r.k.at[block], k, k_is_here)
        pl.when(is_reused)(lambda: plgpu.barrier_wait(r.v_is_used.at[stage]))
        bring_v = lambda: plgpu.copy_gmem_to_smem(r.v.at[block], v, v_is_here)
        if not hasattr(r, "short_v"):
            bring_v()
            return
        is_short = r.is_short[(*where.row, i)] > 0
        pl.when(~is_short)(bring_v)
        # Its hidden values are 0 there.
        short = r.short_v.at[where.video, where.head]
        pl.when(is_short)(lambda: plgpu.copy_gmem_to_smem(short, v, v_is_here))

    @pl.loop(jnp.maximum(where.last - num_stages, where.first), where.last)
    def leave(i):
        # Not before all is used; nothing waits for the last blocks otherwise.
        stage = lax.rem(i - where.first, jnp.int32(num_stages))
        plgpu.barrier_wait(r.k_is_used.at[stage])
        plgpu.barrier_wait(r.v_is_used.at[stage])


def _attend(r: SimpleNamespace, where: SimpleNamespace, group: jax.Array) -> None:
    """The online softmax of 64 queries, in base 2, and its results."""
    plgpu.set_max_registers(232, action="increase")
    num_stages, _, head_dim = r.near_k.shape
    rows = pl.ds((lax.axis_index("tile") * WARPGROUPS + group) * QUERIES, QUERIES)
    near_q, q_is_here = r.near_q.at[group], r.q_is_here.at[group]
    plgpu.copy_gmem_to_smem(r.q.at[where.video, where.head, rows], near_q, q_is_here)
    plgpu.barrier_wait(q_is_here)
    scale = head_dim**-0.5 * LOG2_E
    in_registers, per_query = plgpu.Layout.WGMMA, plgpu.Layout.WGMMA.reduce(1)
    lay = (lambda x, layout: x) if r.is_interpreted else plgpu.layout_cast
    product = _plain_product if r.is_interpreted else _product

    def take_turns():
        """The phase of one warpgroup is over, and so is the other's, which is the next one's."""
        plgpu.barrier_arrive(r.turn)
        plgpu.barrier_wait(r.turn)

    def step(i, carry, is_masked):
        out, top, total = carry
        stage = lax.rem(i - where.first, jnp.int32(num_stages))
        plgpu.barrier_wait(r.k_is_here.at[stage])
        z = product(near_q, r.near_k.at[stage], transposed=True)
        plgpu.barrier_arrive(r.k_is_used.at[stage])
        take_turns()

        if is_masked:
            number = lay(lax.broadcasted_iota(jnp.int32, z.shape, 1), in_registers)
            counts = (number >= r.low[(*where.row, i)]) & (number < r.high[(*where.row, i)])
            z = jnp.where(counts, z, -jnp.inf)
        bias = r.bias[(*where.row, i)] * LOG2_E if hasattr(r, "bias") else jnp.float32(0)
        new_top = jnp.maximum(top, jnp.max(z, axis=1) * scale + bias)
        decay = jnp.exp2(top - new_top)
        weights = jnp.exp2(z * scale - lax.broadcast_in_dim(new_top - bias, z.shape, [0]))
        total = total * decay + jnp.sum(weights, axis=1)
        weights = weights.astype(r.v.dtype)
        plgpu.barrier_wait(r.v_is_here.at[stage])
        take_turns()

        added = product(weights, r.near_v.at[stage])
        plgpu.barrier_arrive(r.v_is_used.at[stage])
        out = out * lax.broadcast_in_dim(decay, out.shape, [0]) + added
        return out, new_top, total

    carry = (
        lay(jnp.zeros((QUERIES, head_dim), jnp.float32), in_registers),
        lay(jnp.full((QUERIES,), LOWEST, jnp.float32), per_query),
        lay(jnp.zeros((QUERIES,), jnp.float32), per_query),
    )
    pl.when(group == 1)(take_turns)
    whole = jnp.clip(r.whole[where.row], where.first, where.last)
    carry = lax.fori_loop(where.first, whole, functools.partial(step, is_masked=False), carry)
    carry = lax.fori_loop(whole, where.last, functools.partial(step, is_masked=True), carry)
    pl.when(group == 0)(take_turns)

    out, top, total = carry
    own = (where.part, where.video, where.head, rows)
    share = 1 / jnp.maximum(total, jnp.finfo(jnp.float32).tiny)
    r.out[own] = out * lax.broadcast_in_dim(share, out.shape, [0])
    r.maximum[own] = top * (1 / LOG2_E)
    r.denominator[own] = total


def _product(a: Any, b: Any, transposed: bool = False) -> jax.Array:
    """``a b`` or ``a b^T`` in float32 by the matrix units; b, and a or not, in shared memory."""
    num_rows, num_columns = a.shape[0], b.shape[0 if transposed else 1]

    def multiply(accumulator):
        plgpu.wgmma(accumulator, a, b.transpose((1, 0)) if transposed else b)
        return accumulator[...]

    return pl.run_scoped(multiply, plgpu.WGMMAAccumulatorRef((num_rows, num_columns), jnp.float32))


def _plain_product(a: Any, b: Any, transposed: bool = False) -> jax.Array:
    """The same for the interpreter, which knows no layouts and takes no transposed operand."""
    b = b[...].T if transposed else b[...]
    product = jnp.dot(a[...], b, preferred_element_type=jnp.float32)
    # Matrix units have read, in the order of copies, when they hand out a product.
    plgpu.commit_smem()
    return product
