"""Work of a chunk, counted from shapes: floating-point operations, a multiply-add as two."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from vidcache_jax.config import RolloutConfig, WanConfig
from vidcache_jax.models import wan_dit
from vidcache_jax.sampling.rollout import Rollout
from vidcache_jax.sharding import DATA, MODEL_AXES


@dataclasses.dataclass(frozen=True)
class Work:
    """Operations of one chunk of one video, all passes.

    With q tokens in the chunk, n that each query attends to (its own chunk included), L layers,
    width d and feed-forward width f, a pass takes

        linear           2 q L (6 d^2 + 2 d f)     q, k, v, o; q, o over the text; feed-forward
        self-attention   4 q n d L
        text             4 q text_len d L

    Embeddings, head and norms, together under a hundredth, are left out.
    """

    linear: float
    attention: float

    @property
    def total(self) -> float:
        return self.linear + self.attention


def chunk_work(
    config: WanConfig, rollout: RolloutConfig, latent_size: tuple[int, int], attended_frames: float
) -> Work:
    """Work of the denoise passes and the commit pass.

    Args:
      attended_frames: latent frames a query attends to, the chunk's own included; a mean over
        heads and layers where they differ.
    """
    rows, columns = config.token_grid(*latent_size)
    queries = rollout.frames_per_chunk * rows * columns
    keys = attended_frames * rows * columns
    passes = len(rollout.denoise_timesteps) + 1
    width, layers = config.dim, config.num_layers
    linear = 2 * queries * layers * (6 * width**2 + 2 * width * config.ffn_dim)
    attention = 4 * queries * (keys + config.text_len) * width * layers
    return Work(passes * linear, passes * attention)


def work_of_a_chip(rollout: Rollout, batch: int, latent_size: tuple[int, int]) -> Work:
    """An equal share of the work of ``batch`` videos."""
    frames = attended_frames(rollout, latent_size)
    work = chunk_work(rollout.config, rollout.rollout, latent_size, frames)
    share = batch / rollout.layout.size(DATA, *MODEL_AXES)
    return Work(work.linear * share, work.attention * share)


def attended_frames(rollout: Rollout, latent_size: tuple[int, int]) -> float:
    """Latent frames that the program computes attention over, the chunk's own included.

    A policy's slots, of which those that the chunk displaces and its own are as many. Without a
    kernel, which leaves hidden slots out, a denoise pass computes the chunk's own on top.
    """
    config, frames = rollout.config, rollout.rollout.frames_per_chunk
    spec = wan_dit.cache_spec(config, 1, latent_size, frames, jnp.float32)
    policy: Any = rollout.policy

    def keys():
        start = jnp.zeros((), jnp.int32)
        return policy.read(policy.init(spec), start, frames).k

    return jax.eval_shape(keys).shape[2] / spec.tokens_per_frame
