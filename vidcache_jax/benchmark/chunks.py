"""A policy's chunk beside that of a sliding window which attends to as many slots."""

import dataclasses
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from vidcache_jax.array_typing import Latents
from vidcache_jax.benchmark.ceilings import Product
from vidcache_jax.benchmark.timing import medians
from vidcache_jax.benchmark.video import Video
from vidcache_jax.cache import CachePolicy, SlidingWindow
from vidcache_jax.models.video_model import VideoModel
from vidcache_jax.planning.counts import attended_frames, chunk_work
from vidcache_jax.sampling.rollout import Rollout
from vidcache_jax.sampling.session import decode_chunk


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChunkTime:
    """A chunk in the steady state: noise, denoise passes and commit pass; no decoding.

    Attributes:
      attended: latent frames that attention is computed over, the policy's slots.
      flops: of all passes (`planning.counts`) over that many; None after a transition (ISPA), which
        leaves fewer.
      ceiling: FLOP/s of a matrix product in the same turns.
      frames: pixel frames of a chunk, of all videos.
      window_seconds: of `SlidingWindow` with as many slots, in turns with the policy.
      cache_nbytes: buffers of the cache.
      temporaries: bytes that the program needs besides; None where the compiler does not tell.
    """

    policy: str
    attended: float
    seconds: float
    window_seconds: float
    flops: float | None
    ceiling: float
    frames: int
    cache_nbytes: int
    temporaries: int | None

    @property
    def overhead(self) -> float:
        """Over the window, as a share of its time."""
        return self.seconds / self.window_seconds - 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class OtherTimes:
    """Attributes:
    compile_seconds: until the first policy's chunk program was there.
    first_chunk: from a prompt's embeddings to the first chunk's pixels, everything compiled.
    decode: a later chunk's latents to pixels.
    """

    compile_seconds: float
    first_chunk: float
    decode: float


def measure_chunks(
    model: VideoModel,
    policies: Mapping[str, CachePolicy],
    product: Product,
    rounds: int,
    videos: int = 1,
) -> Iterator[ChunkTime]:
    """Each policy once its memory is full, and its window; a chunk of several videos at once."""
    for name, policy in policies.items():
        rollout = Rollout(model.config, model.rollout, policy)
        attended = attended_frames(rollout, model.latent_size)
        window = SlidingWindow(window_size=max(round(attended), model.rollout.frames_per_chunk))
        own, other = Video(model, policy, videos), Video(model, window, videos)
        for _ in range(chunks_to_fill(model, attended) - 1):
            jax.block_until_ready((own.advance(), other.advance()))
        calls = {"own": own.advance, "window": other.advance, "product": product.call}
        seconds = medians(calls, rounds)
        work = chunk_work(model.config, model.rollout, model.latent_size, attended)
        memory = own.program().memory_analysis()
        chunk = model.rollout.frames_per_chunk
        pixel_frames = model.codec.num_pixel_frames
        yield ChunkTime(
            policy=name,
            attended=attended,
            seconds=seconds["own"],
            window_seconds=seconds["window"],
            flops=videos * work.total if own.policy == policy else None,
            ceiling=product.rate(seconds["product"]),
            frames=videos * (pixel_frames(2 * chunk) - pixel_frames(chunk)),
            cache_nbytes=own.cache_nbytes,
            temporaries=None if memory is None else memory.temp_size_in_bytes,
        )


def measure_others(model: VideoModel, policy: CachePolicy, rounds: int) -> OtherTimes:
    """What surrounds the chunks of a video."""
    start = time.perf_counter()
    Video(model, policy).program()
    compile_seconds = time.perf_counter() - start

    def decoded(latents: Latents, state: Any) -> Any:
        return decode_chunk(model.codec, model.codec_params, latents, state)

    def first_chunk() -> jax.Array:
        video = Video(model, policy)
        state = model.codec.init_state(1, *model.latent_size)
        return decoded(video.advance(), state)[0]

    latents = Video(model, policy).advance()
    state = decoded(latents, model.codec.init_state(1, *model.latent_size))[1]

    def decode() -> jax.Array:
        nonlocal state  # given up by the call before
        frames, state = decoded(latents, state)
        return frames

    seconds = medians({"first chunk": first_chunk, "decode": decode}, rounds)
    return OtherTimes(
        compile_seconds=compile_seconds,
        first_chunk=seconds["first chunk"],
        decode=seconds["decode"],
    )


def chunks_to_fill(model: VideoModel, attended: float) -> int:
    """Chunks after which a policy of that many slots is in its steady state."""
    return -(-round(attended) // model.rollout.frames_per_chunk) + 2
