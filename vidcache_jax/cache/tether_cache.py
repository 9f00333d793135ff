"""TetherCache: sink | memory | recent, with gated recall (`grab`) and trusted alignment (TAME).

arXiv 2606.13035, and its released code for what the paper leaves open. With sink S, memory M,
recent R and a chunk of c frames [s, e), e = s + c, the cache of one layer holds

    sink      frames below S, for ever
    memory    up to M frames in [S, e - R), chosen by GRAB
    recent    frames [e - R, e), the chunk among them

The c frames in [s - R, e - R) are displaced by the chunk: hidden while it is denoised and, when it
is committed, candidates for memory together with its members. TAME edits those that win
(`ops.recall`).
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from vidcache_jax.array_typing import FrameNumber
from vidcache_jax.cache import grab, slots
from vidcache_jax.cache.policy import CachePolicy
from vidcache_jax.cache.state import CacheSpec, CacheView, Chunk, SlotCache
from vidcache_jax.ops.recall import Moments, empty_moments, recall, store

PAPER_TAU = 0.6
"""The paper's strength of alignment, its optimum over 240 s."""
CODE_TAU = 0.35
"""The default of the released code."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TetherState:
    """S + M + R frames in slots whose order means nothing, and the moments of each."""

    slots: SlotCache
    k: Moments
    v: Moments


class Regions(NamedTuple):
    """Which slots hold what, as frame numbers tell it."""

    sink: Bool[Array, "B K"]
    members: Bool[Array, "B K"]
    """Of the memory, before the chunk."""
    displaced: Bool[Array, "B K"]
    recent: Bool[Array, "B K"]


@dataclasses.dataclass(frozen=True)
class TetherCache(CachePolicy):
    """Attend to the first frames, to M frames recalled by merit, and to the latest ones.

    Layers decide independently; all heads of a layer hold the same frames. Visible frames take
    RoPE positions 0 ... n - 1 in the order of their numbers.

    Attributes:
      sink_size: S, first frames of the video, never displaced and never edited.
      memory_size: M; 0 makes this a `SlidingWindow` with a sink.
      recent_size: R, latest frames kept, the current chunk included.
      alpha: weight of temporal diversity against attention mass.
      tau: strength of the alignment, 0 = recalled frames keep their bits. The paper's is
        ``PAPER_TAU = 0.6``, the released code's default ``CODE_TAU = 0.35``.
      score_temperature: divides GRAB's logits; only in the released code.

    Raises:
      ValueError: a size is negative or `recent_size` is 0, `tau` lies outside of [0, 1], `alpha`
        is negative, `score_temperature` is not positive.
    """

    sink_size: int = 3
    memory_size: int = 14
    recent_size: int = 4
    alpha: float = 0.35
    tau: float = PAPER_TAU
    score_temperature: float = 1.0

    def __post_init__(self):
        for name, least in (("sink_size", 0), ("memory_size", 0), ("recent_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(
                    f"{name}={getattr(self, name)} must be at least {least} latent frames"
                )
        if not 0 <= self.tau <= 1:
            raise ValueError(f"tau={self.tau} must lie between 0 (no alignment) and 1 (full)")
        if not 0 <= self.alpha < float("inf"):
            raise ValueError(f"alpha={self.alpha} must be 0 (no diversity) or a positive number")
        if not 0 < self.score_temperature < float("inf"):
            raise ValueError(f"score_temperature={self.score_temperature} must be positive")

    @property
    def budget(self) -> int:
        """Frames attended to in the steady state, the current chunk included."""
        return self.sink_size + self.memory_size + self.recent_size

    def init(self, spec: CacheSpec) -> TetherState:
        if self.recent_size < spec.frames_per_chunk:
            raise ValueError(
                f"recent_size={self.recent_size} is too small for a chunk of "
                f"{spec.frames_per_chunk} latent frames, which it includes: raise it"
            )
        moments = empty_moments(spec.batch, spec.num_heads, self.budget, spec.head_dim)
        return TetherState(slots.empty_slots(spec, self.budget), moments, moments)

    def read(self, cache: TetherState, start_frame: FrameNumber, num_frames: int) -> CacheView:
        held = cache.slots
        regions = self._regions(held.frame_index, start_frame, num_frames)
        # While memory has room, nothing is displaced. (After the commit it always has.)
        candidates = jnp.sum(regions.members | regions.displaced, axis=-1, keepdims=True)
        hidden = regions.displaced & (candidates > self.memory_size)
        visible = (held.frame_index >= 0) & ~hidden
        past = visible & (held.frame_index < start_frame)
        first = jnp.sum(past, axis=-1, keepdims=True, dtype=jnp.int32)
        own = first + jnp.arange(num_frames, dtype=jnp.int32)[None]
        return CacheView(
            k=held.k,
            v=held.v,
            position=slots.grid_positions(
                slots.order_positions(held.frame_index, visible), held.grid
            ),
            visible=visible[:, None],
            query_position=slots.grid_positions(own, held.grid),
        )

    def commit(self, cache: TetherState, chunk: Chunk) -> TetherState:
        held = cache.slots
        num_frames = chunk.k.shape[2] // (held.grid[0] * held.grid[1])
        regions = self._regions(held.frame_index, chunk.start_frame, num_frames)
        candidates = regions.members | regions.displaced
        kept = self._recall(cache, chunk, candidates)
        # Frames that join before memory is full join as they are: nothing has been chosen yet.
        chosen = jnp.sum(candidates, axis=-1, keepdims=True) > self.memory_size
        if self.tau > 0 and self.memory_size > 0:
            trusted = regions.sink | regions.members
            # Without a single trusted frame (no sink, memory still empty) there is no alignment.
            has_trusted = jnp.any(trusted, axis=-1, keepdims=True)
            admitted = kept & regions.displaced & chosen & has_trusted
            cache = self._align(cache, chunk.start_frame, num_frames, trusted, admitted)
        free = ~(regions.sink | kept | regions.recent)
        # Stable: the first free slots, of which there are at least as many as the chunk needs.
        places = jnp.argsort(~free, axis=-1, stable=True)[:, :num_frames]
        return self._store(cache, chunk, places)

    def memory_index(self, cache: TetherState) -> Int[Array, "L memory"]:
        """Frames in memory; -1 everywhere until the cache has been full, as in the reference."""
        frames = cache.slots.frame_index[:, 0]
        end = jnp.max(frames, axis=-1, keepdims=True) + 1
        in_memory = (frames >= self.sink_size) & (frames < end - self.recent_size)
        in_memory &= end >= self.budget
        none = jnp.iinfo(jnp.int32).max
        ascending = jnp.sort(jnp.where(in_memory, frames, none), axis=-1)[:, : self.memory_size]
        return jnp.where(ascending == none, -1, ascending)

    def _regions(
        self, frames: Int[Array, "B K"], start_frame: FrameNumber, num_frames: int
    ) -> Regions:
        start = jnp.asarray(start_frame, jnp.int32)
        oldest_before = start - self.recent_size
        oldest_after = oldest_before + num_frames
        sink = (frames >= 0) & (frames < self.sink_size)
        later = frames >= self.sink_size
        return Regions(
            sink=sink,
            members=later & (frames < oldest_before),
            displaced=later & (frames >= oldest_before) & (frames < oldest_after),
            recent=later & (frames >= oldest_after),
        )

    def _recall(
        self, cache: TetherState, chunk: Chunk, candidates: Bool[Array, "B K"]
    ) -> Bool[Array, "B K"]:
        frames = cache.slots.frame_index
        mean_query = jnp.mean(chunk.q.astype(jnp.float32), axis=2)
        importance = grab.attention_mass(
            mean_query, cache.k.mean, candidates, self.score_temperature
        )
        diversity = grab.temporal_diversity(importance, frames, candidates)
        score = importance + self.alpha * diversity
        return grab.select(score, frames, candidates, self.memory_size)

    def _align(
        self,
        cache: TetherState,
        start_frame: FrameNumber,
        num_frames: int,
        trusted: Bool[Array, "B K"],
        admitted: Bool[Array, "B K"],
    ) -> TetherState:
        """Edits admitted frames where they lie; the other displaced ones keep their bits."""
        frames = cache.slots.frame_index
        first = jnp.asarray(start_frame, jnp.int32) - self.recent_size
        displaced = first + jnp.arange(num_frames, dtype=jnp.int32)
        # A frame that is not held finds slot 0. Then none has been displaced before, and the frame
        # in slot 0, the first of all, is in the sink or nothing is trusted: neither is admitted.
        places = jnp.argmax(frames[:, None, :] == displaced[None, :, None], axis=-1)
        admitted = jnp.take_along_axis(admitted, places, axis=-1)
        held, which = cache.slots, (places, admitted, trusted)
        k, k_moments = recall(held.k, cache.k, *which, tau=self.tau)
        v, v_moments = recall(held.v, cache.v, *which, tau=self.tau)
        return TetherState(dataclasses.replace(held, k=k, v=v), k_moments, v_moments)

    def _store(self, cache: TetherState, chunk: Chunk, places: Int[Array, "B F"]) -> TetherState:
        held = cache.slots
        k, k_moments = store(held.k, cache.k, chunk.k.astype(held.k.dtype), places)
        v, v_moments = store(held.v, cache.v, chunk.v.astype(held.v.dtype), places)
        numbers = slots.chunk_frames(chunk.start_frame, *places.shape[::-1])
        index = slots.write_numbers(held.frame_index, places, numbers)
        return TetherState(SlotCache(k, v, index, held.grid), k_moments, v_moments)
