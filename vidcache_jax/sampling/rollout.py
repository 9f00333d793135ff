"""One chunk of a rollout, as a pure function: denoise passes that read, one pass that commits."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vidcache_jax.array_typing import FrameNumber, Latents, Params, Timesteps
from vidcache_jax.cache.policy import CachePolicy
from vidcache_jax.config import RolloutConfig, WanConfig
from vidcache_jax.models import wan_dit
from vidcache_jax.sampling import schedule


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RolloutState:
    """Everything a rollout carries from chunk to chunk."""

    cache: wan_dit.StackedCache
    next_frame: FrameNumber
    """Latent frames made so far; the number of the next one."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ChunkResult:
    latents: Latents
    flow_first: Latents
    """Flow of the chunk's first denoise pass."""


@dataclasses.dataclass(frozen=True)
class Rollout:
    """The static facts of a rollout: hashable, so that equal rollouts share one compilation."""

    config: WanConfig
    rollout: RolloutConfig
    policy: CachePolicy

    def init(self, batch: int, latent_size: tuple[int, int], dtype) -> RolloutState:
        """Empty caches and frame 0, for latents of (Y, X).

        Raises:
          ValueError: the policy cannot serve this chunk size, or the size does not patchify.
        """
        spec = wan_dit.cache_spec(
            self.config, batch, latent_size, self.rollout.frames_per_chunk, dtype
        )
        cache = self.policy.init_layers(spec, self.config.num_layers)
        return RolloutState(cache=cache, next_frame=jnp.zeros((), jnp.int32))

    def step(
        self,
        params: Params,
        state: RolloutState,
        text_kv: wan_dit.TextKV,
        noise: Latents,
        renoise: Float[Array, "later B F Y X C"],
    ) -> tuple[RolloutState, ChunkResult]:
        """Makes one chunk.

        x = noise
        for each timestep t:   x0 = x - sigma(t) dit(x, t, cache)
                               x  = (1 - sigma(t')) x0 + sigma(t') fresh noise
        cache = commit(x0, context_timestep)
        """
        model = (params, self.config, self.policy)
        start = state.next_frame

        def denoise(x, timestep):
            return wan_dit.denoise(*model, x, timestep, text_kv, state.cache, start), None

        clean, flow_first, _ = sample(self.rollout, denoise, noise, renoise)
        context = jnp.full(noise.shape[:2], self.rollout.context_timestep, jnp.float32)
        cache = wan_dit.commit(*model, clean, context, text_kv, state.cache, start)
        return RolloutState(cache, start + noise.shape[1]), ChunkResult(clean, flow_first)

    def check_length(self, num_frames: int) -> None:
        """Refuses, before any work, a video that the policy cannot hold.

        Raises:
          ValueError: the policy has a limit and ``num_frames`` latent frames exceed it.
        """
        limit = self.policy.max_frames
        if limit is not None and num_frames > limit:
            raise ValueError(
                f"{self.policy} holds {limit} latent frames, but this video needs {num_frames}: "
                "raise its capacity, or choose a bounded policy such as SlidingWindow"
            )


def sample(
    rollout: RolloutConfig,
    denoise: Callable[[Latents, Timesteps], tuple[Latents, Any]],
    noise: Latents,
    renoise: Float[Array, "later B F Y X C"],
) -> tuple[Latents, Latents, Any]:
    """The denoise passes of a chunk.

    Args:
      denoise: noisy latents and their timesteps -> (flow, anything to hand back).

    Returns:
      Clean latents, the flow of the first pass, and what the passes handed back, stacked.
    """
    timesteps = schedule.rollout_timesteps(rollout)
    sigmas = jnp.asarray(timesteps / 1000, jnp.float32)

    def one_pass(x, t, sigma):
        flow, aux = denoise(x, jnp.full(x.shape[:2], t, jnp.float32))
        flow = flow.astype(jnp.float32)
        # flow = noise - clean, so a pass says what is clean and what is noise in x.
        return x - sigma * flow, x + (1 - sigma) * flow, flow, aux

    # The first pass stands alone (its flow is returned); the others are one loop, so that the
    # program holds two copies of the model's denoise pass however many steps there are.
    clean, implied, flow_first, aux_first = one_pass(noise, jnp.float32(timesteps[0]), sigmas[0])

    def next_pass(carry, inputs):
        clean, implied = carry
        t, sigma, fresh = inputs
        noise = fresh if rollout.renoise == "fresh" else implied
        clean, implied, _, aux = one_pass((1 - sigma) * clean + sigma * noise, t, sigma)
        return (clean, implied), aux

    later = (jnp.asarray(timesteps[1:], jnp.float32), sigmas[1:], renoise)
    (clean, _), aux_later = jax.lax.scan(next_pass, (clean, implied), later)
    stack = lambda first, later: jnp.concatenate([first[None], later])
    return clean, flow_first, jax.tree.map(stack, aux_first, aux_later)


def chunk_noise(
    key: jax.Array, chunk_index: Array, num_steps: int, shape: tuple[int, ...]
) -> tuple[Float[Array, "B F Y X C"], Float[Array, "later B F Y X C"]]:
    """A chunk's initial and fresh noise: one key per (seed, chunk, step).

    A resumed or re-sharded rollout therefore draws the same noise.
    """
    chunk_key = jax.random.fold_in(key, chunk_index)
    steps = jnp.arange(num_steps, dtype=jnp.uint32)
    draw = lambda step: jax.random.normal(jax.random.fold_in(chunk_key, step), shape)
    noise = jax.vmap(draw)(steps)
    return noise[0], noise[1:]
