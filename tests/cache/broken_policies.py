"""Policies with one mistake each. `BROKEN` names the clause of the contract that forbids it."""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from tests.cache.sound_policies import only_chunks_of
from vidcache_jax.cache import CacheSpec, CacheView, Chunk, SlidingWindow, SlotCache
from vidcache_jax.cache.slots import chunk_frames, grid_positions
from vidcache_jax.ops.attention import AttentionPart
from vidcache_jax.ops.rope import rotate


@dataclasses.dataclass(frozen=True)
class Window(SlidingWindow):
    """The sound policy that the others break."""

    window_size: int = 5
    sink_size: int = 1

    def init(self, spec: CacheSpec) -> SlotCache:
        only_chunks_of(spec, 3)
        return super().init(spec)


class RemembersReads(Window):
    """Without jit, every read moves the view by one frame more."""

    reads: ClassVar[list[None]] = []

    def read(self, cache: SlotCache, start_frame, num_frames: int) -> CacheView:
        view = super().read(cache, start_frame, num_frames)
        if isinstance(start_frame, Tracer):
            return view
        self.reads.append(None)
        return dataclasses.replace(view, position=view.position + jnp.int32(len(self.reads)))


class WritesWhileReading(Window):
    """Hides frames for good as soon as they are hidden once."""

    def read(self, cache: SlotCache, start_frame, num_frames: int) -> CacheView:
        end = jnp.asarray(start_frame, jnp.int32) + num_frames
        gone = (cache.frame_index < end - self.recent_size) & (cache.frame_index >= self.sink_size)
        frames = jnp.where(gone, jnp.int32(-1), cache.frame_index)
        object.__setattr__(cache, "frame_index", frames)
        return super().read(cache, start_frame, num_frames)


class StoresRotatedKeys(Window):
    def commit(self, cache: SlotCache, chunk: Chunk) -> SlotCache:
        num_frames = chunk.k.shape[2] // (cache.grid[0] * cache.grid[1])
        frames = chunk_frames(chunk.start_frame, num_frames, chunk.k.shape[0])
        rotated = rotate(chunk.k, grid_positions(frames, cache.grid))
        return super().commit(cache, dataclasses.replace(chunk, k=rotated))


class PositionIsSlot(Window):
    def read(self, cache: SlotCache, start_frame, num_frames: int) -> CacheView:
        view = super().read(cache, start_frame, num_frames)
        batch, num_slots = cache.frame_index.shape
        slots = jnp.broadcast_to(jnp.arange(num_slots, dtype=jnp.int32), (batch, num_slots))
        return dataclasses.replace(view, position=grid_positions(slots, cache.grid))


class SeesEmptySlot(Window):
    def read(self, cache: SlotCache, start_frame, num_frames: int) -> CacheView:
        view = super().read(cache, start_frame, num_frames)
        return dataclasses.replace(view, visible=view.visible_tokens | (view.position[..., 0] < 0))


class AveragesOverEmptySlots(Window):
    """Shifts a slot's values by a statistic that should have left out the empty slots."""

    def commit(self, cache: SlotCache, chunk: Chunk) -> SlotCache:
        mean = jnp.mean(cache.v.astype(jnp.float32), axis=2, keepdims=True).astype(cache.v.dtype)
        edited = cache.v.at[:, :, : cache.grid[0] * cache.grid[1]].add(mean)
        return super().commit(dataclasses.replace(cache, v=edited), chunk)


class ChangesDtype(Window):
    def commit(self, cache: SlotCache, chunk: Chunk) -> SlotCache:
        cache = super().commit(cache, chunk)
        return dataclasses.replace(cache, v=cache.v.astype(jnp.float16))


class EvictsDtype(Window):
    def evict(self, cache: SlotCache, chunk: Chunk, attended: AttentionPart) -> SlotCache:
        return dataclasses.replace(cache, v=cache.v.astype(jnp.float16))


class NeedsConcreteClock(Window):
    def read(self, cache: SlotCache, start_frame, num_frames: int) -> CacheView:
        return super().read(cache, jnp.asarray(int(start_frame), jnp.int32), num_frames)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CountingCache(SlotCache):
    chunks: int = dataclasses.field(default=0, metadata={"static": True})


class CountsInTreedef(Window):
    def init(self, spec: CacheSpec) -> SlotCache:
        cache = super().init(spec)
        return CountingCache(cache.k, cache.v, cache.frame_index, cache.grid)

    def commit(self, cache: CountingCache, chunk: Chunk) -> SlotCache:
        return dataclasses.replace(super().commit(cache, chunk), chunks=cache.chunks + 1)


class AllocatesOnHost(Window):
    """A cache of NumPy arrays is no buffer on the device, and anyone may write into it."""

    def init(self, spec: CacheSpec) -> SlotCache:
        cache = super().init(spec)
        object.__setattr__(cache, "k", np.zeros(cache.k.shape, cache.k.dtype))
        return cache


class RebuildsCache(Window):
    """Changes nothing, but in a way that cannot be done in place."""

    def settle(self, cache: SlotCache, start_frame) -> SlotCache:
        flipped = jnp.flip(cache.k, axis=-2)
        return dataclasses.replace(cache, k=jnp.where(start_frame < 0, flipped, cache.k))


class DecidesForWholeBatch(Window):
    """Keeps its sink as long as the first video's keys say so."""

    def read(self, cache: SlotCache, start_frame, num_frames: int) -> CacheView:
        view = super().read(cache, start_frame, num_frames)
        keep = jnp.sum(jnp.where(cache.k[0] > 0, 1, -1)) > 0
        is_sink = (cache.frame_index == 0) & jnp.any(cache.frame_index > 3)
        return dataclasses.replace(view, visible=view.visible & ~(is_sink[:, None] & keep))


class KeepsNothing(Window):
    def commit(self, cache: SlotCache, chunk: Chunk) -> SlotCache:
        return cache


@dataclasses.dataclass(frozen=True)
class CountsTokens(Window):
    """A clock in tokens overflows int32 long before one in frames."""

    rope: Literal["relative", "absolute"] = "absolute"

    def read(self, cache: SlotCache, start_frame, num_frames: int) -> CacheView:
        view = super().read(cache, start_frame, num_frames)
        tokens = jnp.int32(3)
        return dataclasses.replace(
            view,
            position=view.position * tokens // tokens,
            query_position=view.query_position * tokens // tokens,
        )


class MisreportsMemory(Window):
    def memory_index(self, cache: SlotCache):
        return cache.frame_index[:, 0, :2] + jnp.int32(10**6)


BROKEN = {
    "C1": [RemembersReads, WritesWhileReading],
    "C2": [StoresRotatedKeys, PositionIsSlot],
    "C3": [SeesEmptySlot, AveragesOverEmptySlots],
    "C4": [ChangesDtype, EvictsDtype, NeedsConcreteClock, CountsInTreedef],
    "C5": [AllocatesOnHost],
    "C6": [RebuildsCache],
    "C7": [DecidesForWholeBatch],
    "C8": [KeepsNothing, CountsTokens, MisreportsMemory],
}
