"""A random-weight model of two small layers behind the same interface as any real one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

import vidcache_jax as vj
from vidcache_jax.models.wan_dit import abstract_params
from vidcache_jax.models.wan_vae import WanVAE, WanVAEConfig
from vidcache_jax.tiny.codec import SpriteCodec
from vidcache_jax.tiny.model import embed_text


def random_like(shapes, seed: int):
    """Normal weights of standard deviation 1 / sqrt(fan in), drawn without compiling anything."""
    rng = np.random.default_rng(seed)
    draw = lambda leaf: rng.normal(0, leaf.shape[-2:][0] ** -0.5, leaf.shape)
    return jax.tree.map(lambda leaf: jnp.asarray(draw(leaf), leaf.dtype), shapes)


def toy_model(**rollout) -> vj.VideoModel:
    """Videos of 16 x 32 pixels; keyword arguments change its RolloutConfig."""
    config = dataclasses.replace(
        vj.WanConfig.tiny(), dim=24, ffn_dim=32, num_heads=2, num_layers=2, freq_dim=8
    )
    codec = SpriteCodec(coarse_width=8, fine_width=8, detail_width=4)
    codec_like = jax.eval_shape(codec.init, jax.random.key(0))
    params = random_like(abstract_params(config), seed=0)
    codec_params = random_like(codec_like, seed=1)
    return vj.VideoModel(
        name="toy",
        config=config,
        params=params,
        rollout=vj.RolloutConfig(denoise_timesteps=(1000, 500), **rollout),
        codec=codec,
        codec_params=codec_params,
        embed_text=embed_text,
        latent_size=(2, 4),
        frames_per_second=8.0,
    )


def toy_wan_model(**rollout) -> vj.VideoModel:
    """The same DiT with a VAE of Wan's kind; videos of 4 x 8 pixels, 5 frames, then 6 a chunk."""
    codec = WanVAE(
        WanVAEConfig(dim=4, dim_mult=(1, 2), num_res_blocks=1, temporal_downsample=(True,))
    )
    codec_params = random_like(codec.abstract_params(), seed=2)
    return dataclasses.replace(toy_model(**rollout), codec=codec, codec_params=codec_params)
