"""Convolution over a video that arrives in chunks.

Every layer of the autoencoder is a function ``(x, past) -> (y, past)``: the next frames and what
the layer keeps of the frames before. ``past`` is a nested tuple of arrays, empty for a layer that
sees one frame at a time, and None before the first frame of a video. Wan treats the first frame
differently (it is never merged with others in time), so a chunk that begins a video has other
shapes than later ones; None makes that visible to `jit`, which compiles one program for the first
chunk and one for all others.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Video = Float[Array, "B F Y X C"]
NewVideo = Float[Array, "B f y x c"]
Past = Any
"""What a layer keeps of earlier frames; None before the first."""


def causal_conv(
    x: Video,
    past: Float[Array, "B K Y X C"] | None,
    kernel: Float[Array, "kt ky kx C c"],
    stride: int = 1,
) -> tuple[NewVideo, Float[Array, "B K Y X C"]]:
    """3-D convolution whose output at a time depends on inputs up to that time only.

    With s the stride in time and k the kernel's length, output frame t of the whole video is
    ``sum_i kernel[i] * x[s t - (k - s) + i]``, where x at negative times is ``past``. So a video
    may be cut anywhere between multiples of s. Height and width are padded with zeros.

    Args:
      x: the next frames; their number is a multiple of the stride.
      past: the K = k - s frames before them; None stands for zeros.

    Returns:
      The output, F / s frames, and the last K frames seen: the ``past`` of the next call.
    """
    length, rows, columns = kernel.shape[:3]
    kept = length - stride
    if past is None:
        past = jnp.zeros((x.shape[0], kept, *x.shape[2:]), x.dtype)
    x = jnp.concatenate([past, x], axis=1)
    y = jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, 1, 1),
        padding=((0, 0), (rows // 2, rows // 2), (columns // 2, columns // 2)),
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
    )
    return y, x[:, x.shape[1] - kept :]


class CausalConv(nn.Module):
    """`causal_conv` with weights and a bias."""

    features: int
    kernel_size: tuple[int, int, int] = (3, 3, 3)
    stride: int = 1

    @nn.compact
    def __call__(self, x: Video, past: Past) -> tuple[NewVideo, Past]:
        shape = (*self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        y, past = causal_conv(x, past, kernel, self.stride)
        return y + bias.reshape(1, 1, 1, 1, -1), past


def run(layers: Sequence[nn.Module], x: Video, past: Past) -> tuple[NewVideo, Past]:
    """Runs layers one after the other, each with its own past."""
    before = [None] * len(layers) if past is None else past
    after = []
    for layer, own in zip(layers, before, strict=True):
        x, own = layer(x, own)
        after.append(own)
    return x, tuple(after)
