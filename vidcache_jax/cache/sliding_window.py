"""SlidingWindow: sink + most recent frames, Self-Forcing's FIFO and its relative-RoPE form.

Self-Forcing ``wan/modules/causal_model.py`` shifts its buffer left on overflow; here slot order is
free, so the recent frames form a ring and nothing moves.
"""

import dataclasses
from typing import Literal

import jax.numpy as jnp

from vidcache_jax.array_typing import FrameNumber
from vidcache_jax.cache import slots
from vidcache_jax.cache.policy import CachePolicy
from vidcache_jax.cache.state import CacheSpec, CacheView, Chunk, SlotCache


@dataclasses.dataclass(frozen=True)
class SlidingWindow(CachePolicy):
    """Attend to the first ``sink_size`` frames and the latest ones, ``window_size`` in all.

    The window counts the chunk being made: with window W, sink S and a chunk of frames [s, s + F),
    frame f is visible if ``f < S`` or ``f >= s + F - (W - S)``.

    Attributes:
      window_size: W, latent frames attended to, the current chunk included.
      sink_size: S, first frames of the video that are never displaced.
      rope: ``"relative"``: the visible frames take RoPE positions 0 ... n - 1 in order and the
        chunk the last of them, so that positions never exceed W - 1 however long the video;
        ``"absolute"``: every frame takes its own number, as in Self-Forcing's released code.

    Raises:
      ValueError: sizes are negative, the sink fills the window, or `rope` is neither word.
    """

    window_size: int = 21
    sink_size: int = 0
    rope: Literal["relative", "absolute"] = "relative"

    def __post_init__(self):
        if self.window_size < 1:
            raise ValueError(f"window_size={self.window_size} must be at least 1 latent frame")
        if not 0 <= self.sink_size < self.window_size:
            raise ValueError(
                f"sink_size={self.sink_size} must be at least 0 and smaller than "
                f"window_size={self.window_size}: lower the sink or widen the window"
            )
        if self.rope not in ("relative", "absolute"):
            raise ValueError(f"rope={self.rope!r} must be 'relative' or 'absolute'")

    @property
    def recent_size(self) -> int:
        """Latest frames kept, the current chunk included."""
        return self.window_size - self.sink_size

    def init(self, spec: CacheSpec) -> SlotCache:
        if self.recent_size < spec.frames_per_chunk:
            raise ValueError(
                f"window_size={self.window_size} less sink_size={self.sink_size} leaves "
                f"{self.recent_size} recent frames, too few for a chunk of "
                f"{spec.frames_per_chunk}: widen the window or lower the sink"
            )
        return slots.empty_slots(spec, self.window_size)

    def read(self, cache: SlotCache, start_frame: FrameNumber, num_frames: int) -> CacheView:
        frames = cache.frame_index
        end = jnp.asarray(start_frame, jnp.int32) + num_frames
        is_sink = (frames >= 0) & (frames < self.sink_size)
        is_recent = frames >= jnp.maximum(end - self.recent_size, self.sink_size)
        own = slots.chunk_frames(start_frame, num_frames, frames.shape[0])
        position = frames
        if self.rope == "relative":
            # Frames between sink and recent are gone; closing that gap makes positions 0 ... n-1.
            gap = jnp.maximum(end - self.window_size, 0)
            position = jnp.where(is_sink, frames, frames - gap)
            own = jnp.where(own < self.sink_size, own, own - gap)
        return CacheView(
            k=cache.k,
            v=cache.v,
            position=slots.grid_positions(position, cache.grid),
            visible=(is_sink | is_recent)[:, None],
            query_position=slots.grid_positions(own, cache.grid),
        )

    def commit(self, cache: SlotCache, chunk: Chunk) -> SlotCache:
        num_frames = chunk.k.shape[2] // (cache.grid[0] * cache.grid[1])
        frames = slots.chunk_frames(chunk.start_frame, num_frames, 1)
        # Sink frames lie at their own number; the others take turns in the remaining slots.
        ring = self.sink_size + (frames - self.sink_size) % self.recent_size
        own = jnp.where(frames < self.sink_size, frames, ring)
        return slots.write_frames(cache, own, chunk.k, chunk.v, frames)
