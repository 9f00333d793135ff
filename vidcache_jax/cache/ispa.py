"""ISPA, instance-specific parametric absorption: history moves into the weights of some layers.

arXiv 2607.00712. Its equations are not public and neither is its code: what its figures, tables
and titles do not say is our reading, marked so here and in `absorption`. Three phases:

    warm-up      every layer attends as under the base window; statistics tell how much of that
                 attention a linear map could make of attention to sink and own chunk alone
    transition   once per video, on the host: K of the L layers are chosen, their change of weights
                 dW is solved for, their history is dropped and its memory released
    afterwards   `AbsorbedISPA`: chosen layers see sink and chunk and project with W + dW
"""

import dataclasses
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from vidcache_jax.array_typing import FrameNumber
from vidcache_jax.cache import absorption
from vidcache_jax.cache.absorbed import AbsorbedCache, AbsorbedISPA, split_layers
from vidcache_jax.cache.absorption import Ridge, StreamStatistics
from vidcache_jax.cache.attend import attend_past_and_self, attend_view
from vidcache_jax.cache.policy import (
    CachePolicy,
    LayerIndex,
    StackedPolicy,
    put_layer,
    take_layer,
)
from vidcache_jax.cache.sliding_window import SlidingWindow
from vidcache_jax.cache.state import Attended, CacheSpec, CacheView, Chunk, SlotCache
from vidcache_jax.ops.attention import merge

Select = Literal["post", "pre"]
Passes = Literal["all", "denoise", "context"]


@dataclasses.dataclass(frozen=True)
class ISPA(CachePolicy):
    """A sliding window whose history moves, for some layers, into their output projections.

    Composes with `SlidingWindow` alone: L-layers need a sink that stays as it is, and positions
    that do not depend on what a layer holds. After the transition ``K (W - S)`` frames of cache
    are free, of ``L W``; dW takes ``K D^2`` numbers for each video.

    Attributes:
      base: what F-layers see, and every layer during warm-up.
      warmup_frames: latent frames of warm-up, whole chunks; the next chunk is the first without
        history. The paper's is 12.
      ratio: K / L, rounded (halves to even); the paper has 0.3, 0.4 and 0.5.
      layers: the L-layers themselves; `ratio` and `select` are then not looked at.
      select: layers of the smallest relative residual are chosen, that with W + dW (``"post"``) or
        that with W (``"pre"``). The paper's score is not public.
      sink_frames: S, first frames of the video that L-layers keep; 0 = none. 1 follows from the
        paper's cache sizes.
      absorb: False: L-layers lose their history and W stays ("no absorption").
      ridge: what the ridge is scaled with (`absorption.ridge_of`). Not public.
      mu0: weight of the ridge. Not public.
      rank: of dW; None = as it comes.
      passes: whose attention is gathered: denoise passes, the commit pass (``"context"``), or all
        with equal weight. Not public.
      include_first_chunk: whether that of the first chunk is, which has no history and so pulls
        dW towards 0. The paper's figure has it.

    Raises:
      ValueError: a size, share, word or list of layers that cannot be.
    """

    base: SlidingWindow = SlidingWindow(window_size=12, sink_size=3)
    warmup_frames: int = 12
    ratio: float = 0.5
    layers: tuple[int, ...] | None = None
    select: Select = "post"
    sink_frames: int = 1
    absorb: bool = True
    ridge: Ridge = "frobenius"
    mu0: float = 1e-3
    rank: int | None = None
    passes: Passes = "all"
    include_first_chunk: bool = True

    def __post_init__(self):
        if self.warmup_frames < 1:
            raise ValueError(f"warmup_frames={self.warmup_frames} must be at least 1 latent frame")
        if not 0 < self.ratio < 1:
            raise ValueError(f"ratio={self.ratio} must lie between 0 and 1, both excluded")
        if self.sink_frames < 0:
            raise ValueError(f"sink_frames={self.sink_frames} must be at least 0 latent frames")
        sink_size = self.base.sink_size
        if self.warmup_frames <= self.base.window_size:
            # Nothing has been displaced yet.
            sink_size = self.base.window_size - 1
        if self.sink_frames > min(sink_size, self.warmup_frames):
            raise ValueError(
                f"sink_frames={self.sink_frames}: of the first frames, {self.base} still holds "
                f"{min(sink_size, self.warmup_frames)} after warmup_frames={self.warmup_frames}: "
                "raise its sink_size or lower sink_frames"
            )
        if not 0 < self.mu0 < float("inf"):
            raise ValueError(f"mu0={self.mu0} must be positive: without a ridge dW is not unique")
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"rank={self.rank} must be at least 1, or None")
        if self.layers is not None and (
            not self.layers or sorted({*self.layers}) != sorted(self.layers) or min(self.layers) < 0
        ):
            raise ValueError(f"layers={self.layers} must be different layers, counted from 0")
        for name, words in (("select", Select), ("ridge", Ridge), ("passes", Passes)):
            if getattr(self, name) not in get_args(words):
                raise ValueError(f"{name}={getattr(self, name)!r} must be one of {get_args(words)}")

    def count(self, num_layers: int) -> int:
        """K, the number of L-layers.

        Raises:
          ValueError: no layer would be an L-layer, or none an F-layer.
        """
        if self.layers is not None and max(self.layers) >= num_layers:
            raise ValueError(f"layers={self.layers}: the model has {num_layers} layers, from 0 on")
        count = round(self.ratio * num_layers) if self.layers is None else len(self.layers)
        if not 0 < count < num_layers:
            what = f"ratio={self.ratio}" if self.layers is None else f"layers={self.layers}"
            raise ValueError(
                f"{what} makes {count} of {num_layers} layers local: at least one must be and one "
                "must not"
            )
        return count

    def init(self, spec: CacheSpec) -> SlotCache:
        if self.warmup_frames % spec.frames_per_chunk:
            raise ValueError(
                f"warmup_frames={self.warmup_frames} must be a multiple of the chunk of "
                f"{spec.frames_per_chunk} latent frames"
            )
        return self.base.init(spec)

    def init_layers(self, spec: CacheSpec, num_layers: int) -> SlotCache:
        self.count(num_layers)
        return super().init_layers(spec, num_layers)

    def read(self, cache: SlotCache, start_frame: FrameNumber, num_frames: int) -> CacheView:
        return self.base.read(cache, start_frame, num_frames)

    def commit(self, cache: SlotCache, chunk: Chunk) -> SlotCache:
        return self.base.commit(cache, chunk)

    def prepare(self, cache: SlotCache, start_frame: FrameNumber, num_frames: int) -> SlotCache:
        # No copy of the keys: there is the memory of the statistics, and there are few chunks.
        return cache

    def attend(
        self, cache: SlotCache, layer: LayerIndex, chunk: Chunk, num_frames: int
    ) -> Attended:
        view = self.read(take_layer(cache, layer), chunk.start_frame, num_frames)
        return self._attend(view, chunk, self.passes != "context")

    def update(
        self, cache: SlotCache, layer: LayerIndex, chunk: Chunk, num_frames: int
    ) -> tuple[Attended, SlotCache]:
        updated = self.commit(take_layer(cache, layer), chunk)
        view = self.read(updated, chunk.start_frame, num_frames)
        # The view of the old cache, in effect: the parts are the same in every pass. Read from the
        # new one, or XLA would copy the cache to have both.
        is_past = updated.frame_index < chunk.start_frame
        view = dataclasses.replace(view, visible=view.visible & is_past[:, None])
        attended = self._attend(view, chunk, self.passes != "denoise")
        return attended, put_layer(cache, layer, updated)

    def _attend(self, view: CacheView, chunk: Chunk, is_observed: bool) -> Attended:
        """Attention over past and chunk, in two parts, which costs no more than in one."""
        if not is_observed:
            return Attended(attend_past_and_self(chunk, view).out)
        # While there is warm-up, the first frames lie in the first slots of a sliding window.
        sink, history = view.split(self.sink_frames)
        local = attend_past_and_self(chunk, sink)
        full = merge(local, attend_view(chunk.q, history))
        # As the output projection takes them in.
        return Attended(full.out.astype(chunk.q.dtype), local.out.astype(chunk.q.dtype))

    def init_statistics(self, spec: CacheSpec, num_layers: int) -> StreamStatistics:
        width = spec.num_heads * spec.head_dim
        return absorption.empty_statistics(num_layers, spec.batch, width, width)

    def observe(
        self, statistics: StreamStatistics, layer: LayerIndex, chunk: Chunk, attended: Attended
    ) -> StreamStatistics:
        if attended.local is None:
            return statistics
        new = absorption.stream_statistics(attended.local, attended.out)
        if not self.include_first_chunk:
            new = jax.tree.map(lambda x: jnp.where(chunk.start_frame > 0, x, 0.0), new)
        return put_layer(
            statistics, layer, jax.tree.map(jnp.add, take_layer(statistics, layer), new)
        )

    def advance(
        self,
        frames_made: int,
        cache: SlotCache,
        statistics: StreamStatistics,
        output_kernels: Float[Array, "L D D"],
    ) -> tuple[StackedPolicy, SlotCache | AbsorbedCache, StreamStatistics | None]:
        """The transition, when the warm-up is over.

        Raises:
          ValueError: the ridge is too small for float32.
        """
        if frames_made != self.warmup_frames:
            return self, cache, statistics
        deltas, before, after = absorption.absorb(
            statistics, output_kernels, self.ridge, self.mu0, self.rank
        )
        if np.any(np.isfinite(before) & ~np.isfinite(after)):
            raise ValueError(f"mu0={self.mu0} is too small to solve for dW in float32: raise it")
        for leaf in jax.tree.leaves(statistics):
            leaf.delete()
        is_local = self._choose(np.asarray(before), np.asarray(after))
        absorbed = split_layers(
            cache,
            is_local,
            sink_frames=self.sink_frames,
            deltas=deltas.astype(output_kernels.dtype) if self.absorb else None,
            residuals=(before, after),
        )
        return self.absorbed, absorbed, None

    @property
    def absorbed(self) -> AbsorbedISPA:
        """The policy after the transition."""
        sink_size = max(self.base.sink_size, self.sink_frames)
        return AbsorbedISPA(self.base, dataclasses.replace(self.base, sink_size=sink_size))

    def _choose(
        self, before: Float[np.ndarray, "L B"], after: Float[np.ndarray, "L B"]
    ) -> Bool[np.ndarray, "L B"]:
        if self.layers is not None:
            is_local = np.isin(np.arange(len(before)), self.layers)
            return np.broadcast_to(is_local[:, None], before.shape)
        score = after if self.select == "post" else before
        return absorption.smallest(score, self.count(len(before)))
