"""Wan's autoencoder as a `Codec`: pure functions of (params, chunk, state)."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vidcache_jax.array_typing import Latents, Params
from vidcache_jax.models.codec import Frames
from vidcache_jax.models.layers import apply
from vidcache_jax.models.wan_vae.causal_conv import Past
from vidcache_jax.models.wan_vae.config import WanVAEConfig
from vidcache_jax.models.wan_vae.decoder import Decoder
from vidcache_jax.models.wan_vae.encoder import Encoder


@dataclasses.dataclass(frozen=True)
class WanVAE:
    """The `Codec` of Wan 2.1.

    The first latent frame is one pixel frame, each later one ``temporal_stride`` pixel frames. A
    chunk of F latents is therefore ``temporal_stride * F`` frames long, but ``temporal_stride - 1``
    fewer where a video begins. The state is None there and a tree of arrays of constant size from
    then on, so `jit` compiles two programs: one for the first chunk, one for all others.

    Params: ``{"encoder", "decoder", "conv1", "conv2"}``, the last two being 1 x 1 x 1 convolutions
    between latents and either. It is computed in the params' dtype; norms and softmax, and the
    normalisation of the latents, in float32.
    """

    config: WanVAEConfig = WanVAEConfig()

    @property
    def spatial_stride(self) -> int:
        return self.config.spatial_stride

    @property
    def temporal_stride(self) -> int:
        return self.config.temporal_stride

    @property
    def latent_channels(self) -> int:
        return self.config.z_dim

    def num_pixel_frames(self, num_latent_frames: int) -> int:
        """0, 1, 5, 9, ... for 0, 1, 2, 3, ... latent frames where the stride is 4."""
        return max(0, self.temporal_stride * (num_latent_frames - 1) + 1)

    def init(self, key: jax.Array, dtype=jnp.float32) -> Params:
        """Random params."""
        c, keys = self.config, jax.random.split(key, 4)
        frames = jnp.zeros((1, 1, self.spatial_stride, self.spatial_stride, 3))
        latents, moments = (jnp.zeros((1, 1, 1, 1, width)) for width in (c.z_dim, 2 * c.z_dim))
        params = {
            "encoder": Encoder(c).init(keys[0], frames, None)["params"],
            "conv1": nn.Dense(2 * c.z_dim).init(keys[1], moments)["params"],
            "conv2": nn.Dense(c.z_dim).init(keys[2], latents)["params"],
            "decoder": Decoder(c).init(keys[3], latents, None)["params"],
        }
        return jax.tree.map(lambda leaf: leaf.astype(dtype), params)

    def abstract_params(self, dtype=jnp.float32) -> Params:
        """Shapes and dtypes of the parameters, without allocating them."""
        return jax.eval_shape(lambda key: self.init(key, dtype), jax.random.key(0))

    def init_state(self, batch: int, latent_height: int, latent_width: int) -> None:
        """Nothing comes before the first frame, and `jit` can tell."""
        return None

    def encode(self, params: Params, frames: Frames, state: Past) -> tuple[Latents, Past]:
        """The next pixel frames to normalised latents (the means, not samples), in float32.

        Raises:
          ValueError: the frames are not a whole number of latent frames, rows or columns.
        """
        c, (num_frames, height, width) = self.config, frames.shape[1:4]
        if height % c.spatial_stride or width % c.spatial_stride:
            raise ValueError(
                f"frames of {height} x {width} pixels; both must be multiples of {c.spatial_stride}"
            )
        extra = 1 if state is None else 0
        if num_frames < 1 or (num_frames - extra) % c.temporal_stride:
            raise ValueError(
                f"a chunk of {num_frames} frames; the first of a video must have "
                f"1 + {c.temporal_stride} n frames, later ones {c.temporal_stride} n"
            )
        x = frames.astype(params["conv1"]["kernel"].dtype)
        x, state = apply(Encoder(c), params["encoder"], x, state)
        moments = apply(nn.Dense(2 * c.z_dim), params["conv1"], x)
        latents = moments[..., : c.z_dim].astype(jnp.float32)
        return (latents - _per_channel(c.latent_mean)) / _per_channel(c.latent_std), state

    def decode(self, params: Params, latents: Latents, state: Past) -> tuple[Frames, Past]:
        """The next normalised latents to pixels in [-1, 1], float32.

        Raises:
          ValueError: the latents have another number of channels.
        """
        c = self.config
        if latents.shape[-1] != c.z_dim:
            raise ValueError(f"latents of {latents.shape[-1]} channels; this VAE has {c.z_dim}")
        x = latents.astype(jnp.float32) * _per_channel(c.latent_std) + _per_channel(c.latent_mean)
        x = apply(nn.Dense(c.z_dim), params["conv2"], x.astype(params["conv2"]["kernel"].dtype))
        x, state = apply(Decoder(c), params["decoder"], x, state)
        return jnp.clip(x.astype(jnp.float32), -1.0, 1.0), state


def _per_channel(values: tuple[float, ...]) -> Float[Array, "1 1 1 1 C"]:
    return jnp.asarray(values, jnp.float32).reshape(1, 1, 1, 1, -1)
