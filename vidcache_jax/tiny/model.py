"""The built-in model: a small Wan config with shipped weights. Nothing is special-cased for it."""

from pathlib import Path

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vidcache_jax.config import RolloutConfig, WanConfig
from vidcache_jax.models.video_model import VideoModel
from vidcache_jax.models.wan_dit import abstract_params
from vidcache_jax.tiny import prompt
from vidcache_jax.tiny.codec import SpriteCodec
from vidcache_jax.tiny.weights_io import WEIGHTS, load_weights
from vidcache_jax.tiny.world import WorldConfig

ROLLOUT = RolloutConfig(
    denoise_timesteps=(1000, 875, 750, 625, 500, 375, 250, 125),
    timestep_shift=3.0,
    renoise="implied",
)
"""Trained by flow matching and not distilled, so the flow is solved in eight Euler steps."""


def load(weights: Path = WEIGHTS) -> VideoModel:
    """Reads the shipped weights (made by ``scripts/train_tiny.py``)."""
    config, codec, world = WanConfig.tiny(), SpriteCodec(), WorldConfig()
    codec_like = jax.eval_shape(codec.init, jax.random.key(0))
    latent_size = world.size // codec.spatial_stride
    return VideoModel(
        name="tiny",
        config=config,
        params=load_weights(weights / "dit.safetensors", abstract_params(config)),
        rollout=ROLLOUT,
        codec=codec,
        codec_params=load_weights(weights / "codec.safetensors", codec_like),
        embed_text=embed_text,
        latent_size=(latent_size, latent_size),
        frames_per_second=float(world.frames_per_second),
    )


def embed_text(text: str) -> Float[Array, "slots text_dim"]:
    """A prompt's words as the model reads them.

    Raises:
      ValueError: the prompt has unknown words or cannot be read; the message says how to mend it.
    """
    return prompt.embed(jnp.asarray(prompt.tokenize(text)))
