"""What a pixel <-> latent codec looks like to the sampler."""

from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from vidcache_jax.array_typing import Latents

Frames = Float[Array, "B f H W 3"]
"""Pixels in [-1, 1], channels last; f counts pixel frames, F latent frames."""


@runtime_checkable
class Codec(Protocol):
    """Static facts and pure functions of one autoencoder; hashable, so it may be a jit constant.

    Both directions stream: `state` is the causal memory carried from chunk to chunk, and a video
    cut into chunks anywhere gives the same result as in one piece. Feed the state returned by one
    call to the next call of the same direction; begin each direction with its own `init_state`.

    The state has one tree of shapes from the second chunk on. Before the first frame it may have
    another, where a codec treats that frame differently and a first chunk of as many latents is
    fewer pixel frames: `jit` then compiles one program for the first chunk and one for the others.
    """

    @property
    def spatial_stride(self) -> int:
        """Pixels per latent row and column."""
        ...

    @property
    def temporal_stride(self) -> int:
        """Pixel frames per latent frame, after the first."""
        ...

    @property
    def latent_channels(self) -> int: ...

    def num_pixel_frames(self, num_latent_frames: int) -> int:
        """Pixel frames of a whole video. A chunk's share is a difference of two of these."""
        ...

    def init_state(self, batch: int, latent_height: int, latent_width: int) -> Any:
        """The memory before the first frame, a pytree of arrays (None, say, if there is none)."""
        ...

    def decode(self, params: Any, latents: Latents, state: Any) -> tuple[Frames, Any]:
        """The next latent frames to pixels in [-1, 1], and the state after them."""
        ...

    def encode(self, params: Any, frames: Frames, state: Any) -> tuple[Latents, Any]:
        """The next pixel frames to normalised latents, and the state after them."""
        ...


def to_uint8(frames: Float[Array, "*any"]) -> UInt8[Array, "*any"]:
    """Pixels in [-1, 1] to 0..255, rounded and clipped."""
    scaled = (frames.astype(jnp.float32) + 1.0) * 127.5
    return jnp.clip(jnp.round(scaled), 0.0, 255.0).astype(jnp.uint8)


def from_uint8(frames: UInt8[Array, "*any"]) -> Float[Array, "*any"]:
    """0..255 to pixels in [-1, 1]."""
    return frames.astype(jnp.float32) / 127.5 - 1.0
