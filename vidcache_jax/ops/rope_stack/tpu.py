"""RoPE of a stack of keys for TPUs in Pallas (Mosaic): each key is read and written once.

    grid  (layer, video, block of tokens, head)

Heads that share positions share angles: they come one after the other, and the first leaves the
cosines and sines of the block on the chip. Angles are those of `rope.integer_angles`, as fractions
of a turn in 32 bits, of which the upper two are the quadrant and the rest goes through Taylor's
series. Within a pair the two numbers change places by shifts along the lanes.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from vidcache_jax.ops.mosaic import LANES, SUBLANES, VMEM_LIMIT, reason_against_heads
from vidcache_jax.ops.rope import fixed_point_turns

TOKENS = 2048
"""Of a block."""


def reason_against(x: Float[Array, "L B N S H"]) -> str | None:
    """Why the kernel cannot do this, None if it can."""
    if x.shape[-1] != LANES:
        return f"head_dim={x.shape[-1]} is not {LANES}, the lanes of a vector register"
    return reason_against_heads(x)


def rotate_stack(
    x: Float[Array, "L B N S H"],
    positions: Int[Array, "*L #B G S 3"],
    *,
    tokens: int = TOKENS,
    interpret: bool | pltpu.InterpretParams = False,
) -> Float[Array, "L B N S H"]:
    """`ref.rotate_stack`, for what `reason_against` has nothing against; it has no gradient.

    Args:
      tokens: of a block; a multiple of 128.
      interpret: run the kernel's operations on any device, slowly, for tests; with
        InterpretParams on a simulated TPU.
    """
    layers, batch, num_heads, num_tokens, head_dim = x.shape
    if num_tokens == 0:
        return x
    videos, groups = positions.shape[1:3]
    stored = pl.BlockSpec((None, None, None, tokens, head_dim), lambda l, b, i, n: (l, b, n, i, 0))
    placed = pl.BlockSpec(
        (None, None, None, 3, tokens),
        lambda l, b, i, n: (l, b if videos > 1 else 0, n if groups > 1 else 0, 0, i),
    )
    turns = jnp.asarray(_turns_of_lanes(head_dim))
    return pl.pallas_call(
        functools.partial(_kernel, heads_share_angles=groups == 1),
        grid=(layers, batch, -(-num_tokens // tokens), num_heads),
        in_specs=[stored, placed, pl.BlockSpec(turns.shape, lambda *_: (0, 0))],
        out_specs=stored,
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        scratch_shapes=[pltpu.VMEM((tokens, head_dim), jnp.float32)] * 2,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel", "arbitrary"),
            vmem_limit_bytes=VMEM_LIMIT,
        ),
        cost_estimate=pl.CostEstimate(
            flops=3 * x.size, transcendentals=0, bytes_accessed=2 * x.size * x.dtype.itemsize
        ),
        interpret=interpret,
        name="rotate_stack",
    )(x, jnp.swapaxes(positions, -1, -2), turns)


def _turns_of_lanes(head_dim: int) -> np.ndarray:
    """Rows: the axis of each channel, and its three factors of `rope.integer_angles`."""
    rows = [
        np.stack([np.full(factors.shape[1], axis, np.int32), *factors.view(np.int32)])
        for axis, factors in enumerate(fixed_point_turns(head_dim))
    ]
    return np.repeat(np.concatenate(rows, axis=1), 2, axis=1)


def _kernel(x, positions, turns, out, cos, sin, *, heads_share_angles: bool):
    if heads_share_angles:
        pl.when(pl.program_id(3) == 0)(lambda: _angles(positions, turns, cos, sin))
    else:
        _angles(positions, turns, cos, sin)
    own = x[...].astype(jnp.float32)
    last = own.shape[1] - 1
    neighbour = jnp.where(_is_first(own.shape), pltpu.roll(own, last, 1), pltpu.roll(own, 1, 1))
    out[...] = (own * cos[...] + neighbour * sin[...]).astype(out.dtype)


def _angles(positions, turns, cos, sin):
    """Cosine and, with the sign of the neighbour's part, sine [tokens, lanes]."""
    by_token = jnp.pad(positions[...], ((0, SUBLANES - 3), (0, 0))).T
    shape, axis = cos.shape, turns[0:1]
    of_axis = lambda number: jnp.broadcast_to(by_token[:, number : number + 1], shape)
    index = jnp.where(axis == 0, of_axis(0), jnp.where(axis == 1, of_axis(1), of_axis(2)))
    # Integers wrap at a whole turn, 2^32.
    low, middle, high = index & (2**10 - 1), (index >> 10) & (2**10 - 1), index >> 20
    phase = low * turns[1:2] + middle * turns[2:3] + high * turns[3:4]
    # Quarter turns, and what is left of half a quarter at most.
    quarter = (phase + 2**29) >> 30
    angle = (phase - (quarter << 30)).astype(jnp.float32) * jnp.float32(2 * np.pi / 2**32)
    square = angle * angle
    series = lambda *terms: functools.reduce(lambda tail, term: term + square * tail, terms)
    sine = angle * series(1 / 362880, -1 / 5040, 1 / 120, -1 / 6, 1.0)
    cosine = series(1 / 40320, -1 / 720, 1 / 24, -1 / 2, 1.0)
    is_odd = (quarter & 1) == 1
    sine, cosine = jnp.where(is_odd, cosine, sine), jnp.where(is_odd, sine, cosine)
    cos[...] = jnp.where(((quarter + 1) & 2) == 0, cosine, -cosine)
    is_negative = ((quarter & 2) == 2) != _is_first(shape)
    sin[...] = jnp.where(is_negative, -sine, sine)


def _is_first(shape: tuple[int, int]) -> Array:
    """Whether a lane has the first number of a pair."""
    return jax.lax.broadcasted_iota(jnp.int32, shape, 1) & 1 == 0
