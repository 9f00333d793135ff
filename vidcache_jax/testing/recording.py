"""What policies see during a rollout, kept for studies: queries and views of every commit pass."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vidcache_jax.array_typing import FrameNumber
from vidcache_jax.cache.policy import CachePolicy
from vidcache_jax.cache.state import CacheSpec, CacheView, Chunk
from vidcache_jax.models import wan_dit
from vidcache_jax.models.video_model import VideoModel
from vidcache_jax.ops.attention import AttentionPart
from vidcache_jax.sampling.rollout import Rollout, chunk_noise


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Recorded:
    """A policy's cache, and what the last chunk showed it; stacked over layers."""

    cache: Any
    q: Float[Array, "*stack B N T H"]
    """The chunk's clean queries, un-rotated."""
    view: CacheView
    """What they attended to: after the commit, before anything is evicted."""
    frames_per_chunk: int = dataclasses.field(metadata={"static": True})


@dataclasses.dataclass(frozen=True)
class Recording(CachePolicy):
    """Does what ``policy`` does and remembers what it was shown."""

    policy: CachePolicy

    @property
    def max_frames(self) -> int | None:
        return self.policy.max_frames

    def init(self, spec: CacheSpec) -> Recorded:
        cache = self.policy.init(spec)
        tokens = spec.frames_per_chunk * spec.tokens_per_frame
        shape = (spec.batch, spec.num_heads, tokens, spec.head_dim)
        view = self.policy.read(cache, jnp.zeros((), jnp.int32), spec.frames_per_chunk)
        q = jnp.zeros(shape, spec.dtype)
        return Recorded(cache, q, jax.tree.map(jnp.copy, view), spec.frames_per_chunk)

    def read(self, cache: Recorded, start_frame: FrameNumber, num_frames: int) -> CacheView:
        return self.policy.read(cache.cache, start_frame, num_frames)

    def commit(self, cache: Recorded, chunk: Chunk) -> Recorded:
        return dataclasses.replace(cache, cache=self.policy.commit(cache.cache, chunk))

    def evict(self, cache: Recorded, chunk: Chunk, attended: AttentionPart) -> Recorded:
        num_frames = cache.frames_per_chunk
        view = self.policy.read(cache.cache, chunk.start_frame, num_frames)
        evicted = self.policy.evict(cache.cache, chunk, attended)
        return Recorded(evicted, chunk.q, view, num_frames)

    def settle(self, cache: Recorded, start_frame: FrameNumber) -> Recorded:
        return dataclasses.replace(cache, cache=self.policy.settle(cache.cache, start_frame))


def recorded_rollout(
    model: VideoModel,
    policy: CachePolicy,
    *,
    prompt: str,
    seed: int,
    num_chunks: int,
    latent_size: tuple[int, int] | None = None,
) -> Iterator[Recorded]:
    """Makes a video's latents and yields, after each chunk, what its commit pass showed.

    Args:
      latent_size: (Y, X), the model's own by default.
    """
    size = latent_size or model.latent_size
    rollout = Rollout(model.config, model.rollout, Recording(policy))
    text = jnp.asarray(model.embed_text(prompt), jnp.float32)[None]
    text_kv = wan_dit.encode_text(model.params, model.config, text)
    state = rollout.init(1, size, wan_dit.param_dtype(model.params))
    shape = (1, model.rollout.frames_per_chunk, *size, model.config.in_dim)
    steps = len(model.rollout.denoise_timesteps)
    step = jax.jit(rollout.step)
    for chunk in range(num_chunks):
        index = jnp.asarray(chunk, jnp.int32)
        noise, renoise = chunk_noise(jax.random.key(seed), index, steps, shape)
        state, _ = step(model.params, state, text_kv, noise, renoise)
        yield state.cache
