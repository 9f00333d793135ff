"""Session: one video being made, chunk by chunk, for as long as one likes."""

import bisect
import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from vidcache_jax.array_typing import Latents, Params
from vidcache_jax.cache.policy import CachePolicy
from vidcache_jax.models import wan_dit
from vidcache_jax.models.codec import Codec, to_uint8
from vidcache_jax.models.video_model import VideoModel
from vidcache_jax.sampling.rollout import Rollout, RolloutState, chunk_noise


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SessionState:
    """What a session carries from chunk to chunk; of constant size."""

    rollout: RolloutState
    codec: Any
    """The codec's memory, so that decoding streams."""


# Jitted at module level with hashable static arguments: sessions of equal settings share one
# compilation. The state is donated: the cache is updated in place, not copied.
@functools.partial(
    jax.jit, static_argnames=("rollout", "codec", "latent_shape"), donate_argnames=("state",)
)
def make_chunk(
    rollout: Rollout,
    codec: Codec,
    latent_shape: tuple[int, ...],
    params: Params,
    codec_params: Any,
    state: SessionState,
    text_kv: wan_dit.TextKV,
    key: jax.Array,
) -> tuple[SessionState, UInt8[Array, "B f H W 3"], Latents, Float[Array, ""]]:
    """The one program of a chunk: noise, denoise passes, commit pass, decoding.

    Returns:
      The next state, the chunk's frames, its latents, and the share of the cache that holds
      visible tokens.
    """
    start = state.rollout.next_frame
    num_frames = rollout.rollout.frames_per_chunk
    steps = len(rollout.rollout.denoise_timesteps)
    noise, renoise = chunk_noise(key, start // num_frames, steps, latent_shape)
    next_rollout, chunk = rollout.step(params, state.rollout, text_kv, noise, renoise)
    frames, codec_state = codec.decode(codec_params, chunk.latents, state.codec)
    visible = lambda cache: rollout.policy.read(cache, start, num_frames).visible
    fill = jnp.mean(jax.vmap(visible)(next_rollout.cache).astype(jnp.float32))
    return SessionState(next_rollout, codec_state), to_uint8(frames), chunk.latents, fill


def chunks_for(seconds: float, model: VideoModel) -> int:
    """Chunks of a video of at least that length.

    Raises:
      ValueError: seconds is not a positive number.
    """
    if not (math.isfinite(seconds) and seconds > 0):
        raise ValueError(f"seconds={seconds} must be a positive number of seconds")
    frames = math.ceil(round(seconds * model.frames_per_second, 6))
    frames_of = lambda chunks: model.codec.num_pixel_frames(chunks * model.rollout.frames_per_chunk)
    return bisect.bisect_left(range(1, 2**31), frames, key=frames_of) + 1


class Session:
    """Generates one video under a cache policy.

        session = Session(model, policy, prompt="a red circle bounces", seed=1)
        for frames in session.generate(seconds=60):   # uint8 [frames, height, width, 3]
            ...

    Calling `generate` again continues the video. The same seed gives the same video, whether it
    is generated in one go or in several.

    Args:
      model: what `load_model` returns.
      policy: what the model remembers.
      prompt: in the words of the model's text encoder.
      seed: of all noise.

    Raises:
      ValueError: the prompt cannot be read, or the policy cannot serve the model's chunks.
    """

    def __init__(self, model: VideoModel, policy: CachePolicy, *, prompt: str, seed: int = 0):
        self.model, self.policy = model, policy
        self._rollout = Rollout(model.config, model.rollout, policy)
        text = jnp.asarray(model.embed_text(prompt), jnp.float32)[None]
        self._text_kv = jax.jit(wan_dit.encode_text, static_argnums=1)(
            model.params, model.config, text
        )
        self._key = jax.random.key(seed)
        dtype = wan_dit.param_dtype(model.params)
        self._state = SessionState(
            rollout=self._rollout.init(1, model.latent_size, dtype),
            codec=model.codec.init_state(1, *model.latent_size),
        )
        self._chunks_made = 0
        self._fill = 0.0
        self._latents: jax.Array | None = None

    @property
    def chunks_made(self) -> int:
        return self._chunks_made

    @property
    def cache_nbytes(self) -> int:
        """Bytes of the cache's buffers, all layers."""
        return wan_dit.cache_nbytes(self._state.rollout.cache)

    @property
    def cache_fill(self) -> float:
        """Share of the cache's tokens that the last chunk could attend to, 0 to 1."""
        return float(self._fill)

    @property
    def latents(self) -> Float[np.ndarray, "F Y X C"]:
        """What the last chunk's frames were decoded from.

        Raises:
          ValueError: no chunk has been made.
        """
        if self._latents is None:
            raise ValueError("there are no latents before the first chunk")
        return np.asarray(self._latents[0], np.float32)

    def generate(self, seconds: float) -> Iterator[UInt8[np.ndarray, "f height width 3"]]:
        """Yields the frames of each chunk, until `seconds` more are made (whole chunks).

        Raises:
          ValueError: at the call, before any work: seconds is not positive, or the policy cannot
            hold a video of that length.
        """
        chunks = chunks_for(seconds, self.model)
        frames = (self._chunks_made + chunks) * self.model.rollout.frames_per_chunk
        self._rollout.check_length(frames)
        return self._chunks(chunks)

    def abstract_cache(self) -> wan_dit.StackedCache:
        """Shapes and dtypes of the cache, stacked over layers."""
        return jax.eval_shape(lambda state: state, self._state).rollout.cache

    def compiled_chunk(self) -> jax.stages.Compiled:
        """The chunk program as compiled, for looking at its HLO and memory."""
        return make_chunk.lower(*self._arguments()).compile()

    def _arguments(self) -> tuple[Any, ...]:
        model = self.model
        shape = (1, model.rollout.frames_per_chunk, *model.latent_size, model.config.in_dim)
        weights = (model.params, model.codec_params)
        return self._rollout, model.codec, shape, *weights, self._state, self._text_kv, self._key

    def _chunks(self, count: int) -> Iterator[UInt8[np.ndarray, "f height width 3"]]:
        for _ in range(count):
            self._state, frames, self._latents, self._fill = make_chunk(*self._arguments())
            self._chunks_made += 1
            yield np.asarray(frames[0])
