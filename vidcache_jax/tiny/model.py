"""The built-in model: a small Wan config with shipped weights. Nothing is special-cased for it."""

from pathlib import Path

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vidcache_jax.cache import HeadRoles
from vidcache_jax.config import RolloutConfig, WanConfig
from vidcache_jax.models.video_model import VideoModel
from vidcache_jax.models.wan_dit import abstract_params
from vidcache_jax.tiny import paint, prompt
from vidcache_jax.tiny.codec import SpriteCodec
from vidcache_jax.tiny.weights_io import WEIGHTS, load_weights
from vidcache_jax.tiny.world import MOTIONS, WorldConfig

ROLLOUT = RolloutConfig(
    denoise_timesteps=(1000, 875, 750, 625, 500, 375, 250, 125),
    timestep_shift=3.0,
    renoise="implied",
)
"""Trained by flow matching and not distilled, so the flow is solved in eight Euler steps."""


def load(weights: Path = WEIGHTS) -> VideoModel:
    """Reads the shipped weights (made by ``scripts/train_tiny.py``) and the roles of their heads.

    The roles are of the shipped weights: others next to them have none until they are profiled.
    """
    config, codec, world = WanConfig.tiny(), SpriteCodec(), WorldConfig()
    roles = weights / "head_roles.json"
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
        head_roles=HeadRoles.load(roles) if roles.is_file() else None,
        example_prompts=prompt.EXAMPLES + _made_up_prompts(),
    )


def embed_text(text: str) -> Float[Array, "slots text_dim"]:
    """A prompt's words as the model reads them.

    Raises:
      ValueError: the prompt has unknown words or cannot be read; the message says how to mend it.
    """
    return prompt.embed(jnp.asarray(prompt.tokenize(text)))


def _made_up_prompts() -> tuple[str, ...]:
    """Sixteen, of every colour, shape, motion and place."""
    pick = lambda words, index: words[index % len(words)]
    return tuple(
        f"a {pick(paint.COLOURS, i)} {pick(paint.SHAPES, i // 4 + i)} {pick(MOTIONS, i // 2)} "
        f"in the {pick(paint.PLACES, i)}"
        for i in range(16)
    )
