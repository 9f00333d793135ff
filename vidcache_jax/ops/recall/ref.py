"""The definition of recall: TAME's trusted alignment, in place (TetherCache, arXiv 2606.13035).

Per video, head and channel (Eqs. 11 to 13): with the recalled frame's moments (mu_x, sigma_x) and
those of all trusted frames together (mu_T, sigma_T),

    aligned = (1 - tau) x + tau (sigma_T (x - mu_x) / sigma_x + mu_T)

in float32; standard deviations are those of the population and at least 1e-6, as in the released
``tame.py``.
"""

import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from vidcache_jax.array_typing import CachedHeads, Heads
from vidcache_jax.ops.frames import put_frames, take_frames
from vidcache_jax.ops.recall.moments import (
    Moments,
    frame_moments,
    pooled,
    put_moments,
    take_moments,
)

SMALLEST_STD = 1e-6


def recall(
    x: CachedHeads,
    moments: Moments,
    places: Int[Array, "B F"],
    admitted: Bool[Array, "B F"],
    trusted: Bool[Array, "B K"],
    *,
    tau: float,
) -> tuple[CachedHeads, Moments]:
    """Aligns the admitted ones of F frames where they lie; every other frame keeps its bits.

    Moments of edited frames become those of what is stored, so after rounding to x's dtype.
    """
    tokens = x.shape[2] // trusted.shape[1]
    frames, own = take_frames(x, places, tokens), take_moments(moments, places)
    aligned = align(frames, own, pooled(moments, trusted), tau)
    is_edited = jnp.repeat(admitted, tokens, axis=1)[:, None, :, None]
    frames = jnp.where(is_edited, aligned, frames)
    return store(x, moments, frames, places)


def store(
    x: CachedHeads, moments: Moments, frames: Heads, places: Int[Array, "B F"]
) -> tuple[CachedHeads, Moments]:
    """Writes F frames, and their moments, into the slots ``places``."""
    own = frame_moments(frames, places.shape[1])
    return put_frames(x, places, frames), put_moments(moments, places, own)


def align(x: Heads, own: Moments, trusted: Moments, tau: float) -> Heads:
    """Frames x with moments ``own`` ([B, N, F, H]), aligned to ``trusted`` ([B, N, 1, H])."""
    frames = rearrange(x.astype(jnp.float32), "b n (f t) h -> b n f t h", f=own.mean.shape[2])
    per_frame = lambda moment: moment[:, :, :, None]
    mean, spread = per_frame(own.mean), per_frame(std(own))
    trusted_mean, trusted_spread = per_frame(trusted.mean), per_frame(std(trusted))
    moved = trusted_spread * ((frames - mean) / spread) + trusted_mean
    aligned = (1 - tau) * frames + tau * moved
    return rearrange(aligned, "b n f t h -> b n (f t) h").astype(x.dtype)


def std(moments: Moments) -> Float[Array, "B N K H"]:
    return jnp.maximum(jnp.sqrt(moments.variance), SMALLEST_STD)
