"""Recall for TPUs in Pallas (Mosaic); formulas in `ref`.

    grid  (video, head, frame)

A frame is a block of the slots, found by its prefetched place; the output is the input's memory,
so that slots which are not among the F are never moved. A block is read once: what the mean of the
edited frame will be is known beforehand, (1 - tau) mu_x + tau mu_T but for rounding, and the sums
of deviations from that give the moments of what is stored. A frame that is not admitted passes
through as it is. The moments of all slots of a head stay on the chip while its frames pass.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Int

from vidcache_jax.array_typing import CachedHeads
from vidcache_jax.ops.mosaic import SUBLANES, VMEM_LIMIT, reason_against_heads
from vidcache_jax.ops.recall.moments import Moments, pooled
from vidcache_jax.ops.recall.ref import SMALLEST_STD, std


def reason_against(x: CachedHeads, num_slots: int) -> str | None:
    """Why the kernel cannot do this, None if it can."""
    if (tokens := x.shape[2] // num_slots) % SUBLANES != 0:
        return f"frames of {tokens} tokens are no multiple of {SUBLANES}"
    return reason_against_heads(x)


def recall(
    x: CachedHeads,
    moments: Moments,
    places: Int[Array, "B F"],
    admitted: Bool[Array, "B F"],
    trusted: Bool[Array, "B K"],
    *,
    tau: float,
    piece: int = 256,
    interpret: bool | pltpu.InterpretParams = False,
) -> tuple[CachedHeads, Moments]:
    """`ref.recall`, for what `reason_against` has nothing against; it has no gradient.

    Args:
      piece: tokens of a frame that are edited together.
      interpret: run the kernel's operations on any device, slowly, for tests; with
        InterpretParams on a simulated TPU.
    """
    batch, num_heads, num_keys, head_dim = x.shape
    num_frames, num_slots = places.shape[1], trusted.shape[1]
    pool = pooled(moments, trusted)
    frame = pl.BlockSpec(
        (None, None, num_keys // num_slots, head_dim),
        lambda b, n, i, places, _: (b, n, places[b, i], 0),
    )
    of_head = lambda rows: pl.BlockSpec((None, None, rows, head_dim), lambda b, n, *_: (b, n, 0, 0))
    slots, one = of_head(num_slots), of_head(1)
    like = lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype)
    stored, mean, variance = pl.pallas_call(
        functools.partial(_kernel, tau=tau, piece=piece),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(batch, num_heads, num_frames),
            in_specs=[frame, slots, slots, one, one],
            out_specs=[frame, slots, slots],
        ),
        out_shape=[like(x), like(moments.mean), like(moments.variance)],
        # Counted with the two prefetched ones.
        input_output_aliases={2: 0, 3: 1, 4: 2},
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=VMEM_LIMIT
        ),
        interpret=interpret,
        name="recall",
    )(
        places.astype(jnp.int32), admitted.astype(jnp.int32),
        x, moments.mean, moments.variance, pool.mean, std(pool),
    )  # fmt: skip
    return stored, Moments(mean, variance)


def _kernel(
    places, admitted,
    x, mean, variance, trusted_mean, trusted_std,
    x_out, mean_out, variance_out,
    *, tau: float, piece: int,
):  # fmt: skip
    video, frame = pl.program_id(0), pl.program_id(2)
    slot = pl.ds(places[video, frame], 1)
    is_edited = admitted[video, frame] > 0
    tokens = x.shape[0]

    @pl.when(frame == 0)
    def start():
        mean_out[...] = mean[...]
        variance_out[...] = variance[...]

    @pl.when(~is_edited)
    def keep():
        x_out[...] = x[...]

    @pl.when(is_edited)
    def edit():
        own = mean[slot]
        spread = jnp.maximum(jnp.sqrt(variance[slot]), SMALLEST_STD)
        goal, goal_spread = trusted_mean[...], trusted_std[...]
        expected = (1 - tau) * own + tau * goal
        first = second = jnp.zeros_like(own)
        for at in range(0, tokens, piece):
            part = slice(at, min(at + piece, tokens))
            values = x[part].astype(jnp.float32)
            moved = goal_spread * ((values - own) / spread) + goal
            rounded = ((1 - tau) * values + tau * moved).astype(x.dtype)
            x_out[part] = rounded
            deviation = rounded.astype(jnp.float32) - expected
            first += jnp.sum(deviation, axis=0, keepdims=True)
            second += jnp.sum(deviation * deviation, axis=0, keepdims=True)
        shift = first / tokens
        mean_out[slot] = expected + shift
        # Rounding must not make the variance of a constant channel negative.
        variance_out[slot] = jnp.maximum(second / tokens - shift * shift, 0.0)
