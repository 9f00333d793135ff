"""Recall for NVIDIA GPUs in Triton; formulas in `ref`.

    grid  (video, head and frame; block of channels)

A program edits the channels of one frame where they lie, in one reading: what their mean will be
is known beforehand, (1 - tau) mu_x + tau mu_T but for rounding, and the sums of deviations from
that give the moments of what is stored. A frame that is not admitted is not touched.

Nobody has timed it: it is chosen by name only. Needs ``pip install -e ".[cuda,triton]"``.
"""

from typing import no_type_check

import jax
import jax.numpy as jnp
import jax_triton
import triton
import triton.language as tl
from jaxtyping import Array, Bool, Int

from vidcache_jax.array_typing import CachedHeads
from vidcache_jax.ops.recall.moments import Moments, pooled
from vidcache_jax.ops.recall.ref import SMALLEST_STD, std

BLOCK_TOKENS, BLOCK_CHANNELS = 64, 32


def recall(
    x: CachedHeads,
    moments: Moments,
    places: Int[Array, "B F"],
    admitted: Bool[Array, "B F"],
    trusted: Bool[Array, "B K"],
    *,
    tau: float,
) -> tuple[CachedHeads, Moments]:
    """`ref.recall`; it has no gradient and cannot be mapped."""
    batch, num_heads, num_keys, head_dim = x.shape
    num_frames, num_slots = places.shape[1], trusted.shape[1]
    pool = pooled(moments, trusted)
    like = lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype)
    stored, mean, variance = jax_triton.triton_call(
        x, moments.mean, moments.variance, pool.mean, std(pool),
        places.astype(jnp.int32), admitted.astype(jnp.int32),
        kernel=edit_frame,
        out_shape=(like(x), like(moments.mean), like(moments.variance)),
        input_output_aliases={0: 0, 1: 1, 2: 2},
        grid=(batch * num_heads * num_frames, jax_triton.cdiv(head_dim, BLOCK_CHANNELS)),
        num_warps=4,
        tau=tau, smallest_std=SMALLEST_STD,
        num_heads=num_heads, num_frames=num_frames, num_slots=num_slots,
        tokens=num_keys // num_slots, head_dim=head_dim,
        block_tokens=BLOCK_TOKENS, block_channels=BLOCK_CHANNELS,
    )  # fmt: skip
    return stored, Moments(mean, variance)


# Triton reads the source: what checks types in tests must not wrap it.
@triton.jit
@no_type_check
def edit_frame(
    x, mean, variance, trusted_mean, trusted_std, places, admitted,
    x_out, mean_out, variance_out,
    tau: tl.constexpr, smallest_std: tl.constexpr,
    num_heads: tl.constexpr, num_frames: tl.constexpr, num_slots: tl.constexpr,
    tokens: tl.constexpr, head_dim: tl.constexpr,
    block_tokens: tl.constexpr, block_channels: tl.constexpr,
):  # fmt: skip
    """One block of channels of one frame. The outputs are the first three inputs' memory."""
    frame = tl.program_id(0) % num_frames
    head = (tl.program_id(0) // num_frames).to(tl.int64)
    which = head // num_heads * num_frames + frame
    if tl.load(admitted + which) == 0:
        return
    slot = head * num_slots + tl.load(places + which)
    channel = tl.program_id(1) * block_channels + tl.arange(0, block_channels)
    exists = channel < head_dim

    own, pool = slot * head_dim + channel, head * head_dim + channel
    mu = tl.load(mean + own, mask=exists, other=0.0)
    sigma = tl.sqrt(tl.load(variance + own, mask=exists, other=1.0))
    sigma = tl.maximum(sigma, smallest_std)
    trusted_mu = tl.load(trusted_mean + pool, mask=exists, other=0.0)
    trusted_sigma = tl.load(trusted_std + pool, mask=exists, other=0.0)
    expected = (1 - tau) * mu + tau * trusted_mu

    first = tl.zeros((block_channels,), tl.float32)
    second = tl.zeros((block_channels,), tl.float32)
    for start in range(0, tokens, block_tokens):
        token = start + tl.arange(0, block_tokens)
        mask = (token < tokens)[:, None] & exists[None, :]
        at = (slot * tokens + token)[:, None] * head_dim + channel[None, :]
        values = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
        moved = trusted_sigma[None, :] * ((values - mu[None, :]) / sigma[None, :])
        aligned = (1 - tau) * values + tau * (moved + trusted_mu[None, :])
        rounded = aligned.to(x_out.dtype.element_ty)
        tl.store(x_out + at, rounded, mask=mask)
        deviation = tl.where(mask, rounded.to(tl.float32) - expected[None, :], 0.0)
        first += tl.sum(deviation, axis=0)
        second += tl.sum(deviation * deviation, axis=0)
    shift = first / tokens
    tl.store(mean_out + own, expected + shift, mask=exists)
    # Rounding must not make the variance of a constant channel negative.
    tl.store(variance_out + own, tl.maximum(second / tokens - shift * shift, 0.0), mask=exists)
