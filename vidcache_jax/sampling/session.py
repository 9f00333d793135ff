"""Session: one video being made, chunk by chunk, for as long as one likes."""

import bisect
import collections
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, Key, UInt8

from vidcache_jax.array_typing import Latents, Params
from vidcache_jax.cache.policy import CachePolicy
from vidcache_jax.cache.state import StackedCache
from vidcache_jax.models import wan_dit
from vidcache_jax.models.codec import Codec, from_uint8, to_uint8
from vidcache_jax.models.fingerprint import fingerprint
from vidcache_jax.models.video_model import VideoModel
from vidcache_jax.sampling.prefix import prefix_chunks
from vidcache_jax.sampling.rollout import Rollout, RolloutState, chunk_noise
from vidcache_jax.sharding import DATA, ONE_DEVICE, Layout


# Jitted at module level with hashable static arguments: sessions of equal settings share one
# compilation. States are donated: the cache is updated in place, not copied.
@functools.partial(jax.jit, static_argnames=("rollout", "latent_shape"), donate_argnames=("state",))
def make_chunk(
    rollout: Rollout,
    latent_shape: tuple[int, ...],
    params: Params,
    state: RolloutState,
    text_kv: wan_dit.TextKV,
    keys: Key[Array, " B"],
    index: Int[Array, ""],
) -> tuple[RolloutState, Latents, Float[Array, ""] | None]:
    """The one program of a chunk: noise, denoise passes, commit pass.

    Args:
      latent_shape: (F, Y, X, C) of one video.
      keys: of each video's noise.
      index: number of the chunk in the videos, from 0; says which noise it gets.

    Returns:
      The next state, the chunk's latents, and the share of the cache that holds visible tokens;
      None on a mesh, where nobody shows it and chips would have to exchange theirs.
    """
    start = state.next_frame
    num_frames = rollout.rollout.frames_per_chunk
    steps = len(rollout.rollout.denoise_timesteps)
    draw = lambda key: chunk_noise(key, index, steps, latent_shape)
    noise, renoise = jax.vmap(draw, out_axes=(0, 1))(keys)
    state, chunk = rollout.step(params, state, text_kv, noise, renoise)
    is_alone = rollout.layout.mesh is None
    fill = rollout.policy.fill(state.cache, start, num_frames) if is_alone else None
    return state, chunk.latents, fill


commit_chunk = jax.jit(Rollout.commit, static_argnums=0, donate_argnums=2)
encode_text = jax.jit(wan_dit.encode_text, static_argnums=1)


# Apart from the chunk's program: a codec may need another program for the first frame.
@functools.partial(jax.jit, static_argnames=("codec", "layout"), donate_argnames=("state",))
def decode_chunk(
    codec: Codec, params: Any, latents: Latents, state: Any, layout: Layout = ONE_DEVICE
) -> tuple[UInt8[Array, "B f H W 3"], Any]:
    """The next latents to pixels, and the codec's memory after them.

    On a mesh every chip of a video decodes it, so that nothing crosses between chips.
    """

    def decode(params, latents, state):
        frames, state = codec.decode(params, latents, state)
        return to_uint8(frames), state

    if layout.mesh is not None:
        specs = (P(), P(DATA), P(DATA))
        decode = jax.shard_map(
            decode, mesh=layout.mesh, in_specs=specs, out_specs=P(DATA), check_vma=False
        )
    return decode(params, latents, state)


@functools.partial(jax.jit, static_argnames=("codec",), donate_argnames=("state",))
def encode_chunk(
    codec: Codec, params: Any, frames: UInt8[Array, "B f H W 3"], state: Any
) -> tuple[Latents, Any]:
    """The next pixels to latents, and the codec's memory after them."""
    return codec.encode(params, from_uint8(frames), state)


def chunks_for(seconds: float, model: VideoModel, chunks_made: int = 0) -> int:
    """Chunks that make a video of ``chunks_made`` chunks longer by at least that time.

    Raises:
      ValueError: seconds is not a positive number.
    """
    pixels = lambda chunks: model.codec.num_pixel_frames(chunks * model.rollout.frames_per_chunk)
    return chunks_in(seconds, model.frames_per_second, pixels, chunks_made)


def chunks_in(
    seconds: float, frames_per_second: float, pixels: Callable[[int], int], chunks_made: int = 0
) -> int:
    """`chunks_for` a model of which ``pixels`` says how many frames so many chunks have.

    Raises:
      ValueError: seconds is not a positive number.
    """
    if not (math.isfinite(seconds) and seconds > 0):
        raise ValueError(f"seconds={seconds} must be a positive number of seconds")
    frames = math.ceil(round(seconds * frames_per_second, 6))
    # The first chunk of some codecs has fewer frames than the others.
    more = lambda chunks: pixels(chunks_made + chunks) - pixels(chunks_made)
    return bisect.bisect_left(range(1, 2**31), frames, key=more) + 1


def latent_shape(model: VideoModel) -> tuple[int, ...]:
    """(F, Y, X, C) of one video's chunk."""
    return model.rollout.frames_per_chunk, *model.latent_size, model.config.in_dim


def embed(model: VideoModel, prompt: str) -> Float[np.ndarray, "Tt text_dim"]:
    """The prompt as the model takes it: with rows of zeros, as the model pads too.

    Prompts of any length are then one program.

    Raises:
      ValueError: the prompt cannot be read.
    """
    return pad_text(model, model.embed_text(prompt))


def pad_text(model: VideoModel, embeddings: Any) -> Float[np.ndarray, "Tt text_dim"]:
    """A prompt's embeddings as `embed` gives them."""
    text = np.asarray(embeddings, np.float32)
    return np.pad(text, ((0, max(0, model.config.text_len - len(text))), (0, 0)))


class Session:
    """Generates one video under a cache policy.

        session = Session(model, policy, prompt="a red circle bounces", seed=1)
        for frames in session.generate(seconds=60):   # uint8 [frames, height, width, 3]
            ...

    Calling `generate` again continues the video. The same seed gives the same video, whether it
    is generated in one go or in several.

    A prefix is encoded and committed chunk by chunk, as if the model had made it, and `generate`
    goes on from there (Self-Forcing's image- and video-to-video, ``pipeline/causal_inference.py``).
    Chunks are whole, so its latest frames count, as many as fill chunks; if they are too few for
    one, an image say, the first is repeated in front of them.

    Args:
      model: what `load_model` returns.
      policy: what the model remembers.
      prompt: in the words of the model's text encoder.
      seed: of all noise.
      prefix: how the video begins, in the model's frame size (`read_prefix` reads a file so).
      recache_frames: latest latent frames that `change_prompt` commits anew, whole chunks; 0 keeps
        the cache as it is. LongLive takes 12.

    Raises:
      ValueError: the prompt cannot be read, the policy was made for another model or cannot serve
        the model's chunks or hold the prefix, the prefix is no uint8 video of the model's frame
        size, or recache_frames are not whole chunks.
    """

    def __init__(
        self,
        model: VideoModel,
        policy: CachePolicy,
        *,
        prompt: str,
        seed: int = 0,
        prefix: UInt8[np.ndarray, "f height width 3"] | None = None,
        recache_frames: int = 0,
    ):
        self.model, self.policy = model, policy
        per_chunk = model.rollout.frames_per_chunk
        if recache_frames < 0 or recache_frames % per_chunk:
            raise ValueError(
                f"recache_frames={recache_frames} must be whole chunks of {per_chunk} latent frames"
            )
        policy.check_model(lambda: fingerprint(model.params))
        self._rollout = Rollout(model.config, model.rollout, policy)
        chunks = [] if prefix is None else prefix_chunks(prefix, model)
        self._rollout.check_length(len(chunks) * per_chunk)
        self._text_kv = self._encode(prompt)
        self._keys = jax.random.key(seed)[None]
        self._state = self._empty()
        self._chunks_cached = 0
        self._recent = collections.deque[Latents](maxlen=recache_frames // per_chunk)
        self._decoder_state = model.codec.init_state(1, *model.latent_size)
        self._chunks_made = 0
        self._fill = 0.0
        self._latents: Latents | None = None
        self._prefix_frames = self._begin_with(chunks)

    @property
    def chunks_made(self) -> int:
        """Chunks of the video so far, those of the prefix included."""
        return self._chunks_made

    @property
    def prefix_frames(self) -> UInt8[np.ndarray, "f height width 3"]:
        """What was committed before the first generated frame, as the codec shows it."""
        return self._prefix_frames

    @property
    def cache(self) -> StackedCache:
        """What the policy remembers, stacked over layers; the next chunk overwrites its buffers."""
        return self._state.cache

    @property
    def cache_nbytes(self) -> int:
        """Bytes of the cache's buffers, all layers."""
        return wan_dit.cache_nbytes(self.cache)

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
        chunks = chunks_for(seconds, self.model, self._chunks_made)
        frames = (self._chunks_cached + chunks) * self.model.rollout.frames_per_chunk
        self._rollout.check_length(frames)
        return self._chunks(chunks)

    def change_prompt(self, prompt: str) -> None:
        """Goes on under another prompt; call it between chunks.

        The cache stays, whose keys and values were made under the old prompt, unless the session
        recaches: then a video begins anew, for the policy, with the latest ``recache_frames``
        committed under the new prompt, chunk by chunk as they were made (LongLive's KV-recache,
        ``global_sink=false``: the first of them are what sinks and anchors hold from then on).

        Raises:
          ValueError: the prompt cannot be read; the old one remains.
        """
        self._text_kv = self._encode(prompt)
        if self._recent.maxlen:
            # Before another is made: memory need not hold two.
            del self._state
            self._rollout = Rollout(self.model.config, self.model.rollout, self.policy)
            self._state, self._chunks_cached = self._empty(), 0
            for latents in self._recent:
                self._commit(latents)

    def abstract_cache(self) -> StackedCache:
        """Shapes and dtypes of the cache, stacked over layers."""
        return jax.eval_shape(lambda state: state, self._state).cache

    def compiled_chunk(self) -> jax.stages.Compiled:
        """The chunk program as compiled, for looking at its HLO and memory."""
        return make_chunk.lower(*self._arguments()).compile()

    def _encode(self, prompt: str) -> wan_dit.TextKV:
        model = self.model
        return encode_text(model.params, model.config, embed(model, prompt)[None])

    def _empty(self) -> RolloutState:
        dtype = wan_dit.param_dtype(self.model.params)
        return self._rollout.init(1, self.model.latent_size, dtype)

    def _arguments(self) -> tuple[Any, ...]:
        shape, index = latent_shape(self.model), np.int32(self._chunks_made)
        params = self.model.params
        return self._rollout, shape, params, self._state, self._text_kv, self._keys, index

    def _chunks(self, count: int) -> Iterator[UInt8[np.ndarray, "f height width 3"]]:
        for _ in range(count):
            self._advance()
            self._state, latents, self._fill = make_chunk(*self._arguments())
            self._chunks_cached += 1
            yield self._decode(latents)

    def _advance(self) -> None:
        """Lets the policy change its shapes, if now is the time."""
        frames = self._chunks_cached * self.model.rollout.frames_per_chunk
        self._rollout, self._state = self._rollout.advance(self.model.params, self._state, frames)

    def _commit(self, latents: Latents) -> None:
        """Lets the policy remember a chunk that need not be made."""
        self._advance()
        self._state = commit_chunk(
            self._rollout, self.model.params, self._state, self._text_kv, latents
        )
        self._chunks_cached += 1

    def _decode(self, latents: Latents) -> UInt8[np.ndarray, "f height width 3"]:
        """The pixels of the next chunk, which is committed already."""
        self._latents = latents
        self._recent.append(latents)
        frames, self._decoder_state = decode_chunk(
            self.model.codec, self.model.codec_params, latents, self._decoder_state
        )
        self._chunks_made += 1
        return np.asarray(frames[0])

    def _begin_with(
        self, chunks: list[UInt8[np.ndarray, "_ height width 3"]]
    ) -> UInt8[np.ndarray, "f height width 3"]:
        """Commits and shows the prefix."""
        model = self.model
        encoder_state = model.codec.init_state(1, *model.latent_size)
        shown = [np.zeros((0, *model.frame_size, 3), np.uint8)]
        for frames in chunks:
            latents, encoder_state = encode_chunk(
                model.codec, model.codec_params, frames[None], encoder_state
            )
            self._commit(latents)
            shown.append(self._decode(latents))
        return np.concatenate(shown)
