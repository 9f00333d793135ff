"""Layers of the Wan block: norms, embeddings of time, attention projections.

Norms, modulation sinusoids and softmax are computed in float32 and cast back, so that the same
code runs in float32 and bfloat16 under strict dtype promotion.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float

from vidcache_jax.array_typing import Params
from vidcache_jax.cache.state import OutputDelta
from vidcache_jax.ops.rope import integer_angles


def apply(module: nn.Module, params: Params, *args: Any, **kwargs: Any) -> Any:
    """A Linen module as a pure function of its parameters."""
    return module.apply({"params": params}, *args, **kwargs)


class RMSNorm(nn.Module):
    """``x / sqrt(mean(x^2) + eps) * scale`` over the last axis."""

    eps: float

    @nn.compact
    def __call__(self, x: Float[Array, "*axes D"]) -> Float[Array, "*axes D"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        x32 = x.astype(jnp.float32)
        inverse = 1 / jnp.sqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)
        return (x32 * inverse).astype(x.dtype) * _align(scale, x)


class LayerNorm(nn.Module):
    """``(x - mean) / sqrt(var + eps)``, with an affine map if ``affine``."""

    eps: float
    affine: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "*axes D"]) -> Float[Array, "*axes D"]:
        x32 = x.astype(jnp.float32)
        centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
        variance = jnp.mean(centred * centred, axis=-1, keepdims=True)
        out = centred / jnp.sqrt(variance + self.eps)
        if self.affine:
            scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
            bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
            out = out * _align(scale, x32) + _align(bias, x32)
        return out.astype(x.dtype)


def _align(vector: Float[Array, " D"], x: Float[Array, "*axes D"]) -> Float[Array, "*ones D"]:
    """Gives a vector the rank and dtype of x."""
    return vector.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


def modulate(
    x: Float[Array, "B T D"], shift: Float[Array, "B F D"], scale: Float[Array, "B F D"]
) -> Float[Array, "B T D"]:
    """``x (1 + scale) + shift``, one shift and scale for all tokens of a latent frame."""
    shift, scale = per_token(shift, x.shape[1]), per_token(scale, x.shape[1])
    return x * (1 + scale) + shift


def per_token(per_frame: Float[Array, "B F D"], num_tokens: int) -> Float[Array, "B T D"]:
    """Repeats a value of each latent frame over the frame's tokens."""
    # Each token looks up its frame. `jnp.repeat` makes tokens out of [F, T / F], which cannot be
    # divided over chips when a chip has part of a frame: each would then repeat all of them.
    frame = jnp.arange(num_tokens) // (num_tokens // per_frame.shape[1])
    return jnp.take(per_frame, frame, axis=1)


def timestep_sinusoid(timestep: Float[Array, "B F"], freq_dim: int) -> Float[Array, "B F freq"]:
    """``[cos(t w), sin(t w)]`` with ``w_i = 10000^(-i / (freq_dim / 2))`` (Wan ``model.py``).

    The reference takes t w in float64. Here the whole part of t goes through exact integer
    angles and only the fraction, below 1, is multiplied in float32.
    """
    frequencies = 10000.0 ** -(np.arange(freq_dim // 2) / (freq_dim // 2))
    whole = jnp.floor(timestep)
    fraction = (timestep - whole).astype(jnp.float32)[..., None]
    angles = integer_angles(whole.astype(jnp.int32), frequencies)
    angles = angles + fraction * jnp.asarray(frequencies, jnp.float32).reshape(1, 1, -1)
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def split_heads(x: Float[Array, "B T D"], num_heads: int) -> Float[Array, "B N T H"]:
    return rearrange(x, "b t (n h) -> b n t h", n=num_heads)


def join_heads(x: Float[Array, "B N T H"]) -> Float[Array, "B T D"]:
    return rearrange(x, "b n t h -> b t (n h)")


class AttentionProjections(nn.Module):
    """q, k, v and output projections of one attention; q and k are RMS-normalised full width."""

    dim: int
    num_heads: int
    qk_norm: bool
    eps: float

    def setup(self):
        self.q, self.k, self.v, self.o = (nn.Dense(self.dim) for _ in range(4))
        if self.qk_norm:
            self.norm_q, self.norm_k = RMSNorm(self.eps), RMSNorm(self.eps)

    def query(self, x: Float[Array, "B T D"]) -> Float[Array, "B N T H"]:
        q = self.q(x)
        return split_heads(self.norm_q(q) if self.qk_norm else q, self.num_heads)

    def key_value(
        self, x: Float[Array, "B T D"]
    ) -> tuple[Float[Array, "B N T H"], Float[Array, "B N T H"]]:
        k = self.k(x)
        k = self.norm_k(k) if self.qk_norm else k
        return split_heads(k, self.num_heads), split_heads(self.v(x), self.num_heads)

    def output(
        self,
        attended: Float[Array, "B N T H"],
        dtype,
        delta: OutputDelta | None = None,
    ) -> Float[Array, "B T D"]:
        x = join_heads(attended.astype(dtype))
        if delta is None:
            return self.o(x)
        projection = self.o.variables["params"]
        kernel = projection["kernel"][None] + delta.kernel.astype(dtype)
        bias = projection["bias"][None] + delta.bias.astype(dtype)
        return jnp.einsum("btd,bde->bte", x, kernel) + bias[:, None]
