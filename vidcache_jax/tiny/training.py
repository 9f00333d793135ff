"""What the tiny model is trained on and for: clips of the sprite world, flow by teacher forcing.

A clip has the length of the released models' training clips, 21 latent frames. Every chunk of it
is noised to its own level and predicted given the clean chunks before it, which is what the
rollout does with its cache. Two things prepare for rollouts far longer than a clip:

* the clean context is slightly noised (its timestep stays 0), because in a long rollout the
  context is the model's own, imperfect output;
* in some clips time jumps after the first chunk, which is how a sink looks to a later chunk. The
  second chunk of such a clip has no loss, so that the model does not learn to jump.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vidcache_jax.array_typing import Params
from vidcache_jax.config import WanConfig
from vidcache_jax.models.teacher_forcing import teacher_forcing
from vidcache_jax.models.wan_dit import encode_text
from vidcache_jax.tiny import prompt, world


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """Training clips and noise.

    Attributes:
      timestep_shift: noise levels are uniform before this warp.
      noises_per_clip: noisy copies of a clip that share its clean stream.
      context_noise: largest sigma of the noise on the clean context.
      jump_probability, max_jump: share of clips whose time jumps after the first chunk, and by
        how many frames at most.
    """

    num_frames: int = 21
    frames_per_chunk: int = 3
    timestep_shift: float = 3.0
    noises_per_clip: int = 2
    context_noise: float = 0.2
    jump_probability: float = 0.3
    max_jump: int = 400


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Clip:
    frames: Float[Array, "*B F H W 3"]
    text: Float[Array, "*B Tt text_dim"]
    jumps: Int[Array, "*B"]
    """Frames of the video skipped after the first chunk; 0 = none."""


def sample_clips(key: Array, batch: int, config: ClipConfig) -> Clip:
    """Random scenes with their prompts."""

    def clip(key: Array):
        scene_key, prompt_key, jump_key, amount_key = jax.random.split(key, 4)
        scene = world.sample_scene(scene_key)
        does_jump = jax.random.bernoulli(jump_key, config.jump_probability)
        amount = jax.random.randint(amount_key, (), 1, config.max_jump, jnp.int32)
        jump = jnp.where(does_jump, amount, 0)
        frame = jnp.arange(config.num_frames, dtype=jnp.int32)
        frame = frame + jnp.where(frame >= config.frames_per_chunk, jump, 0)
        text = prompt.embed(prompt.sample_prompt(prompt_key, scene))
        return Clip(world.render(scene, frame), text, jump)

    return jax.vmap(clip)(jax.random.split(key, batch))


def flow_loss(
    params: Params,
    model: WanConfig,
    latents: Float[Array, "B F Y X C"],
    clip: Clip,
    key: Array,
    config: ClipConfig,
) -> Float[Array, ""]:
    """Mean of ``(flow - (noise - latents))^2`` over chunks noised to independent levels."""
    num_frames = latents.shape[1]
    num_chunks = num_frames // config.frames_per_chunk
    level_key, noise_key, context_key, context_noise_key = jax.random.split(key, 4)

    def noised(key: Array, clean: Float[Array, "b F Y X C"], sigma: Float[Array, "b chunks"]):
        noise = jax.random.normal(key, clean.shape)
        sigma = jnp.repeat(sigma, config.frames_per_chunk, axis=1)
        level = sigma[:, :, None, None, None]
        return (1 - level) * clean + level * noise, noise, sigma

    # Squared: mostly almost clean, sometimes visibly off.
    off = jax.random.uniform(context_key, (latents.shape[0], num_chunks)) ** 2
    context, _, _ = noised(context_noise_key, latents, config.context_noise * off)
    target = jnp.tile(latents, (config.noises_per_clip, 1, 1, 1, 1))
    uniform = jax.random.uniform(level_key, (target.shape[0], num_chunks))
    level = config.timestep_shift * uniform / (1 + (config.timestep_shift - 1) * uniform)
    noisy, noise, sigma = noised(noise_key, target, level)
    flow = teacher_forcing(
        params, model, context, jnp.zeros(latents.shape[:2]), noisy, 1000 * sigma,
        encode_text(params, model, clip.text), config.frames_per_chunk,
    )  # fmt: skip
    error = jnp.mean((flow - (noise - target)) ** 2, axis=(2, 3, 4))
    second = jnp.arange(num_frames) // config.frames_per_chunk == 1
    jumps = jnp.tile(clip.jumps, config.noises_per_clip)
    weight = jnp.where(second[None] & (jumps > 0)[:, None], 0.0, 1.0)
    return jnp.sum(error * weight) / jnp.sum(weight)
