"""FullCache: remember everything, up to a stated capacity."""

import dataclasses

from vidcache_jax.array_typing import FrameNumber
from vidcache_jax.cache import slots
from vidcache_jax.cache.policy import CachePolicy
from vidcache_jax.cache.state import CacheSpec, CacheView, Chunk, SlotCache


@dataclasses.dataclass(frozen=True)
class FullCache(CachePolicy):
    """Attend to every frame so far, each at its own RoPE position (Self-Forcing, window -1).

    Attributes:
      capacity: latent frames the cache holds, and so the longest video; a rollout that would
        exceed it is refused before it starts.

    Raises:
      ValueError: capacity is not positive.
    """

    capacity: int = 21

    def __post_init__(self):
        if self.capacity < 1:
            raise ValueError(f"capacity={self.capacity} must be at least 1 latent frame")

    @property
    def max_frames(self) -> int:
        return self.capacity

    def init(self, spec: CacheSpec) -> SlotCache:
        if self.capacity < spec.frames_per_chunk:
            raise ValueError(
                f"capacity={self.capacity} does not hold one chunk of {spec.frames_per_chunk} "
                "latent frames: raise the capacity"
            )
        return slots.empty_slots(spec, self.capacity)

    def read(self, cache: SlotCache, start_frame: FrameNumber, num_frames: int) -> CacheView:
        frames = cache.frame_index
        own = slots.chunk_frames(start_frame, num_frames, frames.shape[0])
        return CacheView(
            k=cache.k,
            v=cache.v,
            position=slots.grid_positions(frames, cache.grid),
            visible=(frames >= 0)[:, None],
            query_position=slots.grid_positions(own, cache.grid),
        )

    def commit(self, cache: SlotCache, chunk: Chunk) -> SlotCache:
        num_frames = chunk.k.shape[2] // (cache.grid[0] * cache.grid[1])
        frames = slots.chunk_frames(chunk.start_frame, num_frames, 1)
        return slots.write_frames(cache, frames, chunk.k, chunk.v, frames)
