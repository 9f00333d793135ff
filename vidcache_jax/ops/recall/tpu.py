"""Recalling and storing frames for TPUs in Pallas (Mosaic); formulas in `ref`.

    grid  (video, head, frame)

A frame is a block of the slots, found by its prefetched place; the output is the input's memory,
so that slots which are not among the F are never moved. A block is read once: sums of deviations
from a number near the mean give the moments of what is stored. For an edited frame that number is
(1 - tau) mu_x + tau mu_T, its mean but for rounding; for a new one, its first token. A frame that
is not admitted passes through as it is. The moments of all slots of a head stay on the chip while
its frames pass.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Int

from vidcache_jax.array_typing import CachedHeads, Heads
from vidcache_jax.ops.mosaic import SUBLANES, VMEM_LIMIT, reason_against_heads
from vidcache_jax.ops.recall.moments import Moments, pooled
from vidcache_jax.ops.recall.ref import SMALLEST_STD, std


def reason_against(x: CachedHeads, num_slots: int) -> str | None:
    """Why the kernels cannot do this, None if they can."""
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
    head_dim, num_slots = x.shape[-1], trusted.shape[1]
    pool = pooled(moments, trusted)
    in_slot = pl.BlockSpec(
        (None, None, x.shape[2] // num_slots, head_dim),
        lambda b, n, i, places, admitted: (b, n, places[b, i], 0),
    )
    of_head = pl.BlockSpec((None, None, 1, head_dim), lambda b, n, *_: (b, n, 0, 0))
    return _in_place(
        "recall", functools.partial(_edit, tau=tau, piece=piece), x, moments, (places, admitted),
        in_slot, [(pool.mean, of_head), (std(pool), of_head)], interpret,
    )  # fmt: skip


def store(
    x: CachedHeads,
    moments: Moments,
    frames: Heads,
    places: Int[Array, "B F"],
    *,
    piece: int = 256,
    interpret: bool | pltpu.InterpretParams = False,
) -> tuple[CachedHeads, Moments]:
    """`ref.store`; as `recall`."""
    block = (None, None, frames.shape[2] // places.shape[1], x.shape[-1])
    new = pl.BlockSpec(block, lambda b, n, i, places: (b, n, i, 0))
    # What lies in the slots is not read.
    unread = pl.BlockSpec(memory_space=pl.ANY)
    return _in_place(
        "store", functools.partial(_write, piece=piece), x, moments, (places,),
        unread, [(frames, new)], interpret,
    )  # fmt: skip


def _in_place(
    name: str,
    kernel: Callable[..., None],
    x: CachedHeads,
    moments: Moments,
    tables: tuple[Array, ...],
    slots: pl.BlockSpec,
    others: list[tuple[Array, pl.BlockSpec]],
    interpret: bool | pltpu.InterpretParams,
) -> tuple[CachedHeads, Moments]:
    """One turn for each frame. ``tables`` [B, F] are prefetched, the places first."""
    batch, num_heads, num_keys, head_dim = x.shape
    num_frames, num_slots = tables[0].shape[1], moments.mean.shape[2]
    out = pl.BlockSpec(
        (None, None, num_keys // num_slots, head_dim),
        lambda b, n, i, places, *_: (b, n, places[b, i], 0),
    )
    of_head = pl.BlockSpec((None, None, num_slots, head_dim), lambda b, n, *_: (b, n, 0, 0))
    arrays, specs = zip(*others, strict=True)
    like = lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype)
    written = x, moments.mean, moments.variance
    numbers = num_frames * x.size // num_slots
    stored, mean, variance = pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(tables),
            grid=(batch, num_heads, num_frames),
            in_specs=[slots, of_head, of_head, *specs],
            out_specs=[out, of_head, of_head],
        ),
        out_shape=list(map(like, written)),
        # Prefetched tables count as inputs.
        input_output_aliases={len(tables) + i: i for i in range(len(written))},
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=VMEM_LIMIT
        ),
        # Some eight operations for each number that is read and written.
        cost_estimate=pl.CostEstimate(
            flops=8 * numbers, transcendentals=0, bytes_accessed=2 * numbers * x.dtype.itemsize
        ),
        interpret=interpret,
        name=name,
    )(*(table.astype(jnp.int32) for table in tables), *written, *arrays)
    return stored, Moments(mean, variance)


def _edit(
    places, admitted,
    x, mean, variance, trusted_mean, trusted_std,
    x_out, mean_out, variance_out,
    *, tau: float, piece: int,
):  # fmt: skip
    _keep_moments(mean, variance, mean_out, variance_out)
    video, frame = pl.program_id(0), pl.program_id(2)
    is_edited = admitted[video, frame] > 0

    @pl.when(~is_edited)
    def keep():
        x_out[...] = x[...]

    @pl.when(is_edited)
    def edit():
        slot = pl.ds(places[video, frame], 1)
        own, goal, goal_spread = mean[slot], trusted_mean[...], trusted_std[...]
        spread = jnp.maximum(jnp.sqrt(variance[slot]), SMALLEST_STD)

        def blend(values):
            moved = goal_spread * ((values - own) / spread) + goal
            return (1 - tau) * values + tau * moved

        near = (1 - tau) * own + tau * goal
        mean_out[slot], variance_out[slot] = _put(blend, x, x_out, near, piece)


def _write(places, _, mean, variance, frames, x_out, mean_out, variance_out, *, piece: int):
    _keep_moments(mean, variance, mean_out, variance_out)
    slot = pl.ds(places[pl.program_id(0), pl.program_id(2)], 1)
    near = frames[:1].astype(jnp.float32)
    unchanged = lambda values: values
    mean_out[slot], variance_out[slot] = _put(unchanged, frames, x_out, near, piece)


def _keep_moments(mean, variance, mean_out, variance_out):
    @pl.when(pl.program_id(2) == 0)
    def keep():
        mean_out[...] = mean[...]
        variance_out[...] = variance[...]


def _put(change: Callable[[Array], Array], source, x_out, near, piece: int) -> tuple[Array, Array]:
    """Writes a changed frame; mean and variance [1, H] of what is written, by way of ``near``."""
    tokens = source.shape[0]
    first = second = jnp.zeros_like(near)
    for start in range(0, tokens, piece):
        part = slice(start, min(start + piece, tokens))
        rounded = change(source[part].astype(jnp.float32)).astype(x_out.dtype)
        x_out[part] = rounded
        deviation = rounded.astype(jnp.float32) - near
        first += jnp.sum(deviation, axis=0, keepdims=True)
        second += jnp.sum(deviation * deviation, axis=0, keepdims=True)
    shift = first / tokens
    # Rounding must not make the variance of a constant channel negative.
    return near + shift, jnp.maximum(second / tokens - shift * shift, 0.0)
