"""Models with Wan's shapes and random weights: speed does not depend on what they have learnt."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from vidcache_jax.array_typing import Params
from vidcache_jax.cache import HeadRoles
from vidcache_jax.config import WAN, RolloutConfig, WanConfig
from vidcache_jax.models import wan_dit
from vidcache_jax.models.video_model import VideoModel
from vidcache_jax.models.wan_vae import WanVAE


def random_wan(
    name: str, latent_size: tuple[int, int], num_layers: int | None = None
) -> VideoModel:
    """A pipeline as `load_model` makes one, in bfloat16 on accelerators, float32 on a CPU.

    Args:
      num_layers: fewer than the model has, for small machines.
    """
    config = WAN[name]
    config = dataclasses.replace(config, num_layers=num_layers or config.num_layers)
    dtype = jnp.float32 if jax.devices()[0].platform == "cpu" else jnp.bfloat16
    vae, key = WanVAE(), jax.random.key(0)
    return VideoModel(
        name=name,
        config=config,
        params=_random(wan_dit.abstract_params(config, dtype)),
        rollout=RolloutConfig(),
        codec=vae,
        codec_params=_random(vae.abstract_params(dtype)),
        embed_text=lambda _: jax.random.normal(key, (config.text_len, config.text_dim)),
        latent_size=latent_size,
        frames_per_second=16.0,
        head_roles=paper_roles(config),
    )


def paper_roles(config: WanConfig) -> HeadRoles:
    """Roles in the shares that Head Forcing's paper found: 20 % local, 25 % anchor."""
    cycle = ("local",) * 4 + ("anchor",) * 5 + ("memory",) * 11
    heads = [cycle[i % len(cycle)] for i in range(config.num_layers * config.num_heads)]
    rows = range(0, len(heads), config.num_heads)
    return HeadRoles(tuple(tuple(heads[i : i + config.num_heads]) for i in rows))


def _random(abstract: Params) -> Params:
    """Of standard deviation 1 / sqrt(fan in): the same million normal numbers over and over."""
    noise = np.random.default_rng(0).standard_normal(2**20 + 7, np.float32)

    def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        scale = (leaf.shape[-2] if len(leaf.shape) > 1 else leaf.size) ** -0.5
        return jnp.asarray(np.resize((noise * scale).astype(leaf.dtype), leaf.shape))

    return jax.tree.map(draw, abstract)
