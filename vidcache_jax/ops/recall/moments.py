"""Mean and variance of each cached frame, per head and channel, kept so that no frame is re-read.

A frame's numbers are taken once, when it is written. Statistics over several frames follow from
the frames' own: with n frames of equal size, means m_i and variances s_i,

    mean = sum m_i / n          variance = sum (s_i + (m_i - mean)^2) / n

Variances, not sums of squares: keys have channels whose mean is far larger than their spread, and
``E[x^2] - E[x]^2`` would lose them in float32.
"""

import dataclasses

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Moments:
    """Population moments over tokens, float32; K frames."""

    mean: Float[Array, "*stack B N K H"]
    variance: Float[Array, "*stack B N K H"]


def empty_moments(batch: int, num_heads: int, num_frames: int, head_dim: int) -> Moments:
    zeros = jnp.zeros((batch, num_heads, num_frames, head_dim), jnp.float32)
    return Moments(zeros, zeros)


def frame_moments(x: Float[Array, "B N T H"], num_frames: int) -> Moments:
    """Moments of each of the frames that x holds one after the other."""
    x = rearrange(x.astype(jnp.float32), "b n (f t) h -> b n f t h", f=num_frames)
    return Moments(jnp.mean(x, axis=3), jnp.var(x, axis=3))


def pooled(moments: Moments, members: Bool[Array, "B K"]) -> Moments:
    """Moments of all tokens of the member frames together (K = 1); 0 where there are none."""
    member = members[:, None, :, None]
    count = jnp.maximum(jnp.sum(member, axis=2, keepdims=True), 1).astype(jnp.float32)

    def average(x: Float[Array, "B N K H"]) -> Float[Array, "B N 1 H"]:
        # `where`, not a product: what lies in an empty slot may be NaN.
        return jnp.sum(jnp.where(member, x, 0.0), axis=2, keepdims=True) / count

    mean = average(moments.mean)
    return Moments(mean, average(moments.variance + (moments.mean - mean) ** 2))


def take_moments(moments: Moments, slots: Int[Array, "B F"]) -> Moments:
    """Those of the frames in each video's ``slots``."""
    index = slots[:, None, :, None]
    return jax.tree.map(lambda x: jnp.take_along_axis(x, index, axis=2), moments)


def put_moments(moments: Moments, slots: Int[Array, "B F"], new: Moments) -> Moments:
    """Those of frame i become ``new``'s in ``slots[:, i]``."""
    put = jax.vmap(lambda stored, slots, own: stored.at[:, slots].set(own))
    return jax.tree.map(lambda stored, own: put(stored, slots, own), moments, new)
