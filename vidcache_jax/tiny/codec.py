"""The built-in codec: a small convolutional autoencoder of single frames.

Eight pixels to a latent row or column, sixteen channels, one latent frame per frame. As with
Wan's VAE, latents leave `encode` normalised per channel to zero mean and unit variance.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vidcache_jax.array_typing import Latents, Params
from vidcache_jax.models.codec import Frames
from vidcache_jax.models.layers import apply

Plane = Float[Array, "B Y X C"]
Resized = Float[Array, "B y x c"]


def space_to_depth(x: Plane, stride: int) -> Resized:
    return rearrange(x, "b (y i) (x j) c -> b y x (i j c)", i=stride, j=stride)


def depth_to_space(x: Plane, stride: int) -> Resized:
    return rearrange(x, "b y x (i j c) -> b (y i) (x j) c", i=stride, j=stride)


class Residual(nn.Module):
    """`x + mix(silu(conv(silu(x))))`, a 3 x 3 convolution and a mix of channels."""

    @nn.compact
    def __call__(self, x: Plane) -> Plane:
        width = x.shape[-1]
        y = nn.Conv(width, (3, 3), name="conv")(nn.silu(x))
        return x + nn.Dense(width, name="mix")(nn.silu(y))


class Encoder(nn.Module):
    """Frames to latents: a quarter of the resolution, then an eighth."""

    config: "SpriteCodec"

    @nn.compact
    def __call__(self, frames: Float[Array, "B H W 3"]) -> Resized:
        c = self.config
        x = nn.Conv(c.fine_width, (3, 3), name="stem")(space_to_depth(frames, 4))
        x = space_to_depth(Residual(name="fine")(x), 2)
        x = Residual(name="coarse")(nn.Dense(c.coarse_width, name="down")(x))
        return nn.Dense(c.latent_channels, name="head")(nn.silu(x))


class Decoder(nn.Module):
    """Latents to frames: an eighth, a quarter, half of the resolution, and pixels from there."""

    config: "SpriteCodec"

    @nn.compact
    def __call__(self, latents: Plane) -> Float[Array, "B H W 3"]:
        c = self.config
        x = nn.Conv(c.coarse_width, (3, 3), name="stem")(latents)
        x = nn.silu(Residual(name="coarse")(x))
        x = depth_to_space(nn.Dense(4 * c.fine_width, name="up_fine")(x), 2)
        x = nn.silu(Residual(name="fine_1")(Residual(name="fine_0")(x)))
        x = depth_to_space(nn.Dense(4 * c.detail_width, name="up_detail")(x), 2)
        x = nn.silu(Residual(name="detail")(x))
        return depth_to_space(nn.Conv(12, (3, 3), name="head")(x), 2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpriteCodec:
    """The `Codec` of the sprite world. It has no memory: its state is `()`.

    Attributes:
      latent_channels: of a latent pixel.
      coarse_width, fine_width, detail_width: channels at an eighth, a quarter and half of the
        resolution.

    Params: `{"encoder", "decoder", "latent_mean", "latent_std"}`, the last two of shape `[C]`.
    """

    latent_channels: int = 16
    coarse_width: int = 96
    fine_width: int = 64
    detail_width: int = 32

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 1:
                raise ValueError(f"{field.name}={getattr(self, field.name)} must be positive")

    @property
    def spatial_stride(self) -> int:
        return 8

    @property
    def temporal_stride(self) -> int:
        return 1

    @property
    def encoder(self) -> Encoder:
        return Encoder(self)

    @property
    def decoder(self) -> Decoder:
        return Decoder(self)

    def init(self, key: Array) -> dict[str, Any]:
        """Random params; the latents are not normalised yet."""
        encoder_key, decoder_key = jax.random.split(key)
        frames = jnp.zeros((1, 8, 8, 3), jnp.float32)
        latents = jnp.zeros((1, 1, 1, self.latent_channels), jnp.float32)
        return {
            "encoder": self.encoder.init(encoder_key, frames)["params"],
            "decoder": self.decoder.init(decoder_key, latents)["params"],
            "latent_mean": jnp.zeros((self.latent_channels,), jnp.float32),
            "latent_std": jnp.ones((self.latent_channels,), jnp.float32),
        }

    def num_pixel_frames(self, num_latent_frames: int) -> int:
        return num_latent_frames

    def init_state(self, batch: int, latent_height: int, latent_width: int) -> tuple[()]:
        return ()

    def encode(self, params: Params, frames: Frames, state: tuple[()]) -> tuple[Latents, tuple[()]]:
        """Raises ValueError where height or width is no multiple of 8."""
        height, width = frames.shape[2:4]
        if height % self.spatial_stride or width % self.spatial_stride:
            raise ValueError(f"frames of {height} x {width} pixels; both must be multiples of 8")
        params = _as_float32(params)
        flat = rearrange(frames.astype(jnp.float32), "b f h w c -> (b f) h w c")
        mean, std = self._moments(params)
        latents = (apply(self.encoder, params["encoder"], flat) - mean) / std
        return rearrange(latents, "(b f) y x c -> b f y x c", b=frames.shape[0]), state

    def decode(
        self, params: Params, latents: Latents, state: tuple[()]
    ) -> tuple[Frames, tuple[()]]:
        params = _as_float32(params)
        mean, std = self._moments(params)
        flat = rearrange(latents.astype(jnp.float32), "b f y x c -> (b f) y x c") * std + mean
        frames = jnp.clip(apply(self.decoder, params["decoder"], flat), -1.0, 1.0)
        return rearrange(frames, "(b f) h w c -> b f h w c", b=latents.shape[0]), state

    def _moments(self, params: Params) -> tuple[Array, Array]:
        shape = (1, 1, 1, self.latent_channels)
        return params["latent_mean"].reshape(shape), params["latent_std"].reshape(shape)


def _as_float32(params: Params) -> Params:
    # Weights are stored in half precision; so small a model gains nothing from computing in it.
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
