"""Re-runs a recorded rollout from its noise, for comparison with the PyTorch references."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Float

from vidcache_jax.array_typing import Params
from vidcache_jax.cache.policy import CachePolicy
from vidcache_jax.cache.state import StackedCache
from vidcache_jax.config import RolloutConfig, WanConfig
from vidcache_jax.models import wan_dit
from vidcache_jax.sampling.rollout import Rollout


@dataclasses.dataclass(frozen=True)
class Replay:
    """A replayed rollout, arrays in PyTorch's layout.

    Attributes:
      latents: [B, F, C, Y, X].
      flow_first: [chunks, B, frames_per_chunk, C, Y, X], each chunk's first pass.
      memory_index: [chunks, layers, memory_size] frames in memory after each chunk, for policies
        that have a memory; otherwise None.
      cache: the policy's cache after the last chunk, stacked over layers.
    """

    latents: Float[np.ndarray, "B F C Y X"]
    flow_first: Float[np.ndarray, "chunks B f C Y X"]
    memory_index: np.ndarray | None
    cache: StackedCache


def replay(
    params: Params,
    config: WanConfig,
    policy: CachePolicy,
    *,
    noise: Float[np.ndarray, "B F C Y X"],
    renoise: Float[np.ndarray, "chunks later B f C Y X"],
    text_embeds: Float[np.ndarray, "B Tt text_dim"],
    denoise_timesteps: Sequence[float] = (1000, 750, 500, 250),
    timestep_shift: float = 5.0,
    context_timestep: float = 0.0,
    frames_per_chunk: int = 3,
) -> Replay:
    """Runs the sampler on given noise; with the references' noise it gives their latents.

    Args:
      noise: initial noise of every frame.
      renoise: fresh noise of each re-noising.
      denoise_timesteps: before warping.

    Raises:
      ValueError: shapes do not fit each other, the model or the policy.
    """
    rollout = RolloutConfig(
        frames_per_chunk=frames_per_chunk,
        denoise_timesteps=tuple(denoise_timesteps),
        timestep_shift=timestep_shift,
        context_timestep=context_timestep,
    )
    chunks = _check_shapes(config, rollout, noise, renoise, text_embeds)
    static = Rollout(config, rollout, policy)
    static.check_length(noise.shape[1])

    dtype = wan_dit.param_dtype(params)
    state = static.init(noise.shape[0], noise.shape[3:], dtype)
    text = jnp.asarray(text_embeds, jnp.float32)
    text_kv = jax.jit(wan_dit.encode_text, static_argnums=1)(params, config, text)
    step = jax.jit(Rollout.step, static_argnums=0, donate_argnums=2)
    latents, flows, memory = [], [], []
    for index in range(chunks):
        own = slice(index * frames_per_chunk, (index + 1) * frames_per_chunk)
        static, state = static.advance(params, state, own.start)
        state, chunk = step(
            static,
            params,
            state,
            text_kv,
            jnp.asarray(rearrange(noise[:, own], "b f c y x -> b f y x c"), jnp.float32),
            jnp.asarray(rearrange(renoise[index], "s b f c y x -> s b f y x c"), jnp.float32),
        )
        latents.append(_to_torch_layout(chunk.latents))
        flows.append(_to_torch_layout(chunk.flow_first))
        memory.append(static.policy.memory_index(state.cache))
    return Replay(
        latents=np.concatenate(latents, axis=1),
        flow_first=np.stack(flows),
        memory_index=None if memory[0] is None else np.stack([np.asarray(m) for m in memory]),
        cache=state.cache,
    )


def _to_torch_layout(latents) -> np.ndarray:
    return rearrange(np.asarray(latents), "b f y x c -> b f c y x")


def _check_shapes(config, rollout, noise, renoise, text_embeds) -> int:
    """Number of chunks, or a ValueError that names what does not fit."""
    for name, array, ndim in (("noise", noise, 5), ("renoise", renoise, 7),
                              ("text_embeds", text_embeds, 3)):  # fmt: skip
        if array.ndim != ndim:
            raise ValueError(f"{name} of shape {array.shape} should have {ndim} axes")
    batch, frames, channels, height, width = noise.shape
    chunks, left_over = divmod(frames, rollout.frames_per_chunk)
    if left_over or not chunks:
        raise ValueError(
            f"{frames} frames of noise do not split into chunks of {rollout.frames_per_chunk}"
        )
    if channels != config.in_dim:
        raise ValueError(f"noise has {channels} channels, the model in_dim={config.in_dim}")
    steps = len(rollout.denoise_timesteps)
    expected = (chunks, steps - 1, batch, rollout.frames_per_chunk, channels, height, width)
    if renoise.shape != expected:
        raise ValueError(f"renoise has shape {renoise.shape}, this rollout needs {expected}")
    if text_embeds.shape[0] != batch:
        raise ValueError(f"{text_embeds.shape[0]} prompts for a batch of {batch} videos")
    return chunks
