"""The blocks of encoder and decoder, each a layer ``(x, past) -> (y, past)``.

Parameters are named in the manner of Wan's ``wan/modules/vae.py``.
"""

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange, repeat

from vidcache_jax.models.layers import RMSNorm
from vidcache_jax.models.wan_vae.causal_conv import CausalConv, NewVideo, Past, Video, run
from vidcache_jax.ops.attention import attention

# Wan divides by max(|x|, 1e-12) sqrt(C) instead: the same number but for all but vanishing x.
_EPS = 1e-24


class NormSiluConv(nn.Module):
    """``conv(silu(norm(x)))``, the norm over channels, the convolution 3 x 3 x 3."""

    features: int

    @nn.compact
    def __call__(self, x: Video, past: Past) -> tuple[NewVideo, Past]:
        x = nn.silu(RMSNorm(_EPS, name="norm")(x))
        return CausalConv(self.features, name="conv")(x, past)


class ResidualBlock(nn.Module):
    """``shortcut(x) + second(first(x))``; the shortcut is a map where the width changes."""

    features: int

    @nn.compact
    def __call__(self, x: Video, past: Past) -> tuple[NewVideo, Past]:
        same_width = x.shape[-1] == self.features
        shortcut = x if same_width else nn.Dense(self.features, name="shortcut")(x)
        layers = [NormSiluConv(self.features, name=name) for name in ("first", "second")]
        x, past = run(layers, x, past)
        return shortcut + x, past


class FrameAttention(nn.Module):
    """``x + proj(attention(norm(x)))`` of all pixels of a frame among each other, one head."""

    @nn.compact
    def __call__(self, x: Video, past: Past) -> tuple[Video, Past]:
        batch, _, rows, _, width = x.shape
        qkv = nn.Dense(3 * width, name="to_qkv")(RMSNorm(_EPS, name="norm")(x))
        q, k, v = rearrange(qkv, "b f y x (three c) -> three (b f) 1 (y x) c", three=3)
        out = attention(q, k, v).out.astype(x.dtype)
        out = rearrange(out, "(b f) 1 (y x) c -> b f y x c", b=batch, y=rows)
        return x + nn.Dense(width, name="proj")(out), ()


class Downsample(nn.Module):
    """Halves height and width and, if ``temporal``, the frames after the first.

    In time, frame t of the result is a convolution over frames 2 t - 2, 2 t - 1 and 2 t; the
    first frame is left as it is.
    """

    temporal: bool

    @nn.compact
    def __call__(self, x: Video, past: Past) -> tuple[NewVideo, Past]:
        width = x.shape[-1]
        # Zeros below and to the right alone.
        below = ((0, 1), (0, 1))
        x = nn.Conv(width, (3, 3), strides=2, padding=below, name="resample")(x)
        if not self.temporal:
            return x, ()
        time_conv = CausalConv(width, (3, 1, 1), stride=2, name="time_conv")
        if past is not None:
            return time_conv(x, past)
        first, rest = x[:, :1], x[:, 1:]
        rest, past = time_conv(rest, first)
        return jnp.concatenate([first, rest], axis=1), past


class Upsample(nn.Module):
    """Doubles height and width, halves the channels; doubles the frames after the first if
    ``temporal``.

    In time, a causal convolution makes twice the channels, which are two frames. The first frame
    is left as it is and is not seen by the others: they follow zeros.
    """

    temporal: bool

    @nn.compact
    def __call__(self, x: Video, past: Past) -> tuple[NewVideo, Past]:
        width = x.shape[-1]
        first, past = (x[:, :1], past) if past is None else (x[:, :0], past)
        if self.temporal:
            time_conv = CausalConv(2 * width, (3, 1, 1), name="time_conv")
            pairs, past = time_conv(x[:, first.shape[1] :], past)
            rest = rearrange(pairs, "b f y x (two c) -> b (f two) y x c", two=2)
            x = jnp.concatenate([first, rest], axis=1)
        else:
            past = ()
        x = repeat(x, "b f y x c -> b f (y 2) (x 2) c")
        return nn.Conv(width // 2, (3, 3), padding=1, name="resample")(x), past


def middle(width: int) -> list[nn.Module]:
    """The blocks at the coarsest resolution."""
    return [ResidualBlock(width), FrameAttention(), ResidualBlock(width)]
