"""Routing for TPUs in Pallas (Mosaic); formulas in `ref`.

    grid  (video, head, block of evicted profiles, block of retained profiles)

A block of retained profiles is met by all evicted ones of a block, whose highest cosine and its
rank stay on the chip until the last: of the E x R cosines nothing is stored. Evicted profiles lie
along sublanes and retained ones along lanes; the best is kept for each of the 128 lanes by itself,
as if there were 128 routings, and lanes are merged at the end.

A matrix unit multiplies bfloat16 over 128 numbers at once, and a profile has few. So it gets all
products of a cosine in one go: float32 is the sum of three bfloat16, none of them rounded, and what
is multiplied are the nine pairs of these parts, one below the other. Only sums are rounded.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from vidcache_jax.ops.mosaic import LANES, SUBLANES, VMEM_LIMIT, round_up

NOWHERE = jnp.iinfo(jnp.int32).max
"""Above every rank."""
PARTS = 3
"""Of a float32, each as precise as a bfloat16."""


class Tiling(NamedTuple):
    """Sizes of what is on the chip at once; multiples of 128."""

    evicted: int
    """Of a grid step."""
    retained: int
    """Of a grid step."""
    piece: int
    """Retained profiles whose cosines are formed together."""


def choose_tiling(num_evicted: int, num_retained: int) -> Tiling:
    """Blocks of equal size, with little to fill up."""
    blocks = -(-num_evicted // 2432)
    sizes = range(1024, 2048 + 1, LANES)
    retained = min(sizes, key=lambda size: (round_up(num_retained, size), -size))
    return Tiling(
        evicted=round_up(-(-num_evicted // blocks), LANES),
        retained=min(retained, round_up(num_retained, LANES)),
        piece=512,
    )


def reason_against(evicted: Float[Array, "B N delta E"]) -> str | None:
    """Why profiles like these do not suit the kernel, None if they do."""
    return None if evicted.dtype == jnp.float32 else f"float32 is needed, not {evicted.dtype}"


def route(
    evicted: Float[Array, "B N delta E"],
    retained: Float[Array, "B N delta R"],
    rank: Int[Array, "B N R"],
    *,
    tiling: Tiling | None = None,
    interpret: bool | pltpu.InterpretParams = False,
) -> tuple[Int[Array, "B N E"], Float[Array, "B N E"]]:
    """`ref.route`; it has no gradient.

    Args:
      tiling: None for `choose_tiling`'s.
      interpret: run the kernel's operations on any device, slowly, for tests; with
        InterpretParams on a simulated TPU.
    """
    batch, num_heads, horizon, num_evicted = evicted.shape
    num_retained = retained.shape[-1]
    tiling = tiling or choose_tiling(num_evicted, num_retained)
    evicted_blocks = -(-num_evicted // tiling.evicted)
    retained_blocks = -(-num_retained // tiling.retained)
    # What a block has beyond the last profile is nobody's.
    padding = (0, retained_blocks * tiling.retained - num_retained)
    rank = jnp.pad(rank, ((0, 0), (0, 0), padding), constant_values=-1)[:, :, None]

    depth = PARTS**2 * round_up(horizon, SUBLANES)
    of_evicted = lambda b, n, i, j: (b, n, 0, i)
    of_retained = lambda b, n, i, j: (b, n, 0, j)
    best = pl.BlockSpec((None, None, 1, tiling.evicted), of_evicted)
    shape = (batch, num_heads, 1, num_evicted)
    pairs = batch * num_heads * num_evicted * num_retained
    nearest, cosine = pl.pallas_call(
        functools.partial(_kernel, tiling=tiling),
        grid=(batch, num_heads, evicted_blocks, retained_blocks),
        in_specs=[
            pl.BlockSpec((None, None, horizon, tiling.evicted), of_evicted),
            pl.BlockSpec((None, None, horizon, tiling.retained), of_retained),
            pl.BlockSpec((None, None, 1, tiling.retained), of_retained),
        ],
        out_specs=[best, best],
        out_shape=[
            jax.ShapeDtypeStruct(shape, jnp.int32), jax.ShapeDtypeStruct(shape, jnp.float32)
        ],
        scratch_shapes=[
            pltpu.VMEM((tiling.evicted, depth), jnp.bfloat16),
            pltpu.VMEM((tiling.evicted, LANES), jnp.int32),
            pltpu.VMEM((tiling.evicted, LANES), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",) * 3 + ("arbitrary",),
            vmem_limit_bytes=VMEM_LIMIT,
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * pairs * depth,
            transcendentals=0,
            bytes_accessed=evicted.nbytes + evicted_blocks * retained.nbytes,
        ),
        interpret=interpret,
        name="route",
    )(evicted, retained, rank)  # fmt: skip
    return nearest[:, :, 0], cosine[:, :, 0]


def _kernel(evicted, retained, rank, nearest, cosine, own, lowest, highest, *, tiling: Tiling):
    """All evicted profiles of a block against one block of retained ones.

    ``highest`` [evicted, 128] is the highest cosine met in each lane, ``lowest`` its lowest rank;
    ``own`` [evicted, depth] are the evicted profiles as they are multiplied.
    """
    block = pl.program_id(3)

    @pl.when(block == 0)
    def begin():
        parts = _parts(_unit(evicted[...]))
        pairs = jnp.concatenate([part for part in parts for _ in range(PARTS)])
        own[...] = pairs.T.astype(own.dtype)
        lowest[...] = jnp.full_like(lowest, NOWHERE)
        highest[...] = jnp.full_like(highest, -jnp.inf)

    best, cosines = lowest[...], highest[...]
    for start in range(0, tiling.retained, tiling.piece):
        columns = slice(start, min(start + tiling.piece, tiling.retained))
        ranks = rank[:, columns]
        is_retained = ranks >= 0
        # Those that are not retained may hold anything.
        unit = jnp.where(is_retained, _unit(retained[:, columns]), 0.0)
        other = jnp.concatenate(_parts(unit) * PARTS).astype(own.dtype)
        products = jax.lax.dot_general(
            own[...], other, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32
        )
        ranks = jnp.where(is_retained, ranks, NOWHERE)
        products = jnp.where(is_retained, products, -jnp.inf)
        for at in range(0, products.shape[1], LANES):
            lanes = slice(at, at + LANES)
            new, new_ranks = products[:, lanes], ranks[:, lanes]
            first = jnp.where(new == cosines, jnp.minimum(best, new_ranks), best)
            best = jnp.where(new > cosines, new_ranks, first)
            cosines = jnp.maximum(cosines, new)
    lowest[...], highest[...] = best, cosines

    @pl.when(block == pl.num_programs(3) - 1)
    def merge_lanes():
        top = highest[...].T
        cosine[...] = jnp.max(top, axis=0, keepdims=True)
        first = jnp.where(top == cosine[...], lowest[...].T, NOWHERE)
        first = jnp.min(first, axis=0, keepdims=True)
        nearest[...] = jnp.where(first == NOWHERE, 0, first)


def _unit(profile: Float[Array, "delta X"]) -> Float[Array, "delta X"]:
    norm = jnp.sqrt(jnp.sum(profile * profile, axis=0, keepdims=True))
    return jnp.where(norm > 0, profile / norm, 0.0)


def _parts(x: Float[Array, "delta X"]) -> list[Float[Array, "_ X"]]:
    """Three that sum to x and that bfloat16 holds exactly, with rows of 0 to fill registers up."""
    parts, rest = [], jnp.pad(x, ((0, round_up(x.shape[0], SUBLANES) - x.shape[0]), (0, 0)))
    for _ in range(PARTS):
        # Cut off rather than rounded: a conversion there and back is what compilers leave out.
        bits = jax.lax.bitcast_convert_type(rest, jnp.int32) & jnp.int32(-(2**16))
        parts.append(jax.lax.bitcast_convert_type(bits, jnp.float32))
        rest = rest - parts[-1]
    return parts
