"""The latents of videos, chunk by chunk: a `Session` without pixels, for any prompt."""

import jax
import numpy as np

from vidcache_jax.array_typing import Latents
from vidcache_jax.cache import CachePolicy
from vidcache_jax.cache.policy import StackedPolicy
from vidcache_jax.models import wan_dit
from vidcache_jax.models.video_model import VideoModel
from vidcache_jax.sampling.rollout import Rollout
from vidcache_jax.sampling.session import encode_text, latent_shape, make_chunk


class Video:
    """One that is being made, or several at once."""

    def __init__(self, model: VideoModel, policy: CachePolicy, videos: int = 1):
        config = model.config
        self._model = model
        self._rollout = Rollout(config, model.rollout, policy)
        self._state = self._rollout.init(
            videos, model.latent_size, wan_dit.param_dtype(model.params)
        )
        text = jax.random.normal(jax.random.key(0), (videos, config.text_len, config.text_dim))
        self._text_kv = encode_text(model.params, config, text)
        self._keys = jax.random.split(jax.random.key(0), videos)
        self._frames_made = 0

    @property
    def policy(self) -> StackedPolicy:
        """The one it began with, or what that has handed over to."""
        return self._rollout.policy

    @property
    def cache_nbytes(self) -> int:
        return wan_dit.cache_nbytes(self._state.cache)

    def advance(self) -> Latents:
        """The next chunk, as soon as it is dispatched."""
        params, made = self._model.params, self._frames_made
        self._rollout, self._state = self._rollout.advance(params, self._state, made)
        self._state, latents, _ = make_chunk(*self._arguments())
        self._frames_made += latents.shape[1]
        return latents

    def program(self) -> jax.stages.Compiled:
        """That of the next chunk."""
        return make_chunk.lower(*self._arguments()).compile()

    def _arguments(self):
        shape, params = latent_shape(self._model), self._model.params
        index = np.int32(self._frames_made // self._model.rollout.frames_per_chunk)
        return self._rollout, shape, params, self._state, self._text_kv, self._keys, index
