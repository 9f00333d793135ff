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
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, Bool, Float

from vidcache_jax.array_typing import FrameNumber
from vidcache_jax.cache import absorption
from vidcache_jax.cache.absorbed import (
    AbsorbedISPA,
    Base,
    layers_of_rows,
    slots_of,
    split_layers,
    take_rows,
)
from vidcache_jax.cache.absorption import Ridge, StreamStatistics
from vidcache_jax.cache.attend import attend_past_and_self, attend_view
from vidcache_jax.cache.full import FullCache
from vidcache_jax.cache.policy import (
    CachePolicy,
    LayerIndex,
    StackedPolicy,
    put_layer,
    take_layer,
)
from vidcache_jax.cache.sliding_window import SlidingWindow
from vidcache_jax.cache.state import (
    Attended,
    CacheSpec,
    CacheView,
    Chunk,
    LayerCache,
    OutputDelta,
    StackedCache,
)
from vidcache_jax.cache.tether_cache import TetherCache
from vidcache_jax.ops.attention import merge

Select = Literal["post", "pre", "random", "first", "last"]
Passes = Literal["all", "denoise", "context"]


class Absorption(NamedTuple):
    """What the warm-up comes to."""

    is_local: Bool[np.ndarray, "L B"]
    output_delta: OutputDelta | None
    residuals: tuple[Float[np.ndarray, "L B"], Float[np.ndarray, "L B"]]
    """Without dW and with it (`AbsorbedCache`)."""


@dataclasses.dataclass(frozen=True)
class ISPA(CachePolicy):
    """A policy whose history moves, for some layers, into their output projections.

    Wraps `SlidingWindow`, `FullCache` and `TetherCache`, of W frames: their first frames lie as
    they were made, each in a slot, and all layers see a chunk at the same positions. It cannot wrap
    `HeadForcing` and `FutureForcing`, in which heads drop and merge single tokens, the first
    frames' too, by what was attended to (`evict`) or over all layers (`settle`). After the
    transition ``K (W - S)`` frames of cache are free, of ``L W``; dW takes ``K D^2`` numbers for
    each video. Layers are chosen and absorbed once: what an L-layer dropped is not there to be
    absorbed again.

    Attributes:
      base: what F-layers see, and every layer during warm-up.
      warmup_frames: latent frames of warm-up, whole chunks; the next chunk is the first without
        history. The paper's is 12.
      ratio: K / L, rounded (halves to even); the paper has 0.3, 0.4 and 0.5.
      layers: the L-layers themselves; `ratio` and `select` are then not looked at.
      select: which layers are chosen: those of the smallest relative residual, with W + dW
        (``"post"``) or with W (``"pre"``); or, to compare with, the ``"first"`` or the ``"last"``
        or ``"random"`` ones, the same for every video. The paper's score is not public. dW is
        solved for in every layer under ``"post"``, whose score is known no sooner, and otherwise
        in the chosen ones alone.
      select_seed: of ``"random"``.
      sink_frames: S, first frames of the video that L-layers keep; 0 = none. 1 follows from the
        paper's cache sizes.
      absorb: False: L-layers lose their history and W stays ("no absorption").
      ridge: what the ridge is scaled with (`absorption.ridge_of`). Not public.
      mu0: weight of the ridge. Not public.
      rank: of dW; None = as it comes.
      affine: the bias of the output projection may change too. Not in the paper's figure.
      passes: whose attention is gathered: denoise passes, the commit pass (``"context"``), or all
        with equal weight. Not public.
      include_first_chunk: whether that of the first chunk is, which has no history and so pulls
        dW towards 0. The paper's figure has it.

    Raises:
      ValueError: a size, share, word or list of layers that cannot be.
    """

    base: Base = SlidingWindow(window_size=12, sink_size=3)
    warmup_frames: int = 12
    ratio: float = 0.5
    layers: tuple[int, ...] | None = None
    select: Select = "post"
    select_seed: int = 0
    sink_frames: int = 1
    absorb: bool = True
    ridge: Ridge = "frobenius"
    mu0: float = 1e-3
    rank: int | None = None
    affine: bool = False
    passes: Passes = "all"
    include_first_chunk: bool = True

    def __post_init__(self):
        if self.warmup_frames < 1:
            raise ValueError(f"warmup_frames={self.warmup_frames} must be at least 1 latent frame")
        if not 0 < self.ratio < 1:
            raise ValueError(f"ratio={self.ratio} must lie between 0 and 1, both excluded")
        if self.sink_frames < 0:
            raise ValueError(f"sink_frames={self.sink_frames} must be at least 0 latent frames")
        if not isinstance(self.base, Base):
            wrapped = ", ".join(policy.__name__ for policy in get_args(Base))
            raise ValueError(
                f"base={self.base}: ISPA wraps {wrapped}, whose first frames lie as they were "
                "made, each in a slot"
            )
        held = _first_frames(self.base, self.warmup_frames)
        if self.sink_frames > held:
            raise ValueError(
                f"sink_frames={self.sink_frames}: of the first frames, {self.base} still holds "
                f"{held} after warmup_frames={self.warmup_frames}: raise its sink_size or lower "
                "sink_frames"
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

    @property
    def max_frames(self) -> int | None:
        return self.base.max_frames

    def check_model(self, fingerprint: Callable[[], str]) -> None:
        self.base.check_model(fingerprint)

    def init(self, spec: CacheSpec) -> LayerCache:
        if self.warmup_frames % spec.frames_per_chunk:
            raise ValueError(
                f"warmup_frames={self.warmup_frames} must be a multiple of the chunk of "
                f"{spec.frames_per_chunk} latent frames"
            )
        budget = self.base.budget if isinstance(self.base, TetherCache) else 0
        if budget % spec.frames_per_chunk:
            # When its memory fills in the midst of a chunk, the commit pass sees more frames than
            # the denoise passes, and layers would differ in where the chunk is.
            raise ValueError(
                f"{self.base}: the budget of {budget} frames must be a multiple of the chunk of "
                f"{spec.frames_per_chunk}"
            )
        return self.base.init(spec)

    def init_layers(self, spec: CacheSpec, num_layers: int) -> StackedCache:
        self.count(num_layers)
        return super().init_layers(spec, num_layers)

    def read(self, cache: LayerCache, start_frame: FrameNumber, num_frames: int) -> CacheView:
        return self.base.read(cache, start_frame, num_frames)

    def commit(self, cache: LayerCache, chunk: Chunk) -> LayerCache:
        return self.base.commit(cache, chunk)

    def prepare(
        self, cache: StackedCache, start_frame: FrameNumber, num_frames: int
    ) -> StackedCache:
        # No copy of the keys: there is the memory of the statistics, and there are few chunks.
        return cache

    def attend(
        self, cache: StackedCache, layer: LayerIndex, chunk: Chunk, num_frames: int
    ) -> Attended:
        view = self.read(take_layer(cache, layer), chunk.start_frame, num_frames)
        return self._attend(view, chunk, self.passes != "context")

    def update(
        self, cache: StackedCache, layer: LayerIndex, chunk: Chunk, num_frames: int
    ) -> tuple[Attended, StackedCache]:
        updated = self.commit(take_layer(cache, layer), chunk)
        view = self.read(updated, chunk.start_frame, num_frames)
        # The chunk by itself, as in the other passes. Not read from the old cache, or XLA would
        # copy it to have both.
        is_past = slots_of(updated).frame_index < chunk.start_frame
        view = dataclasses.replace(view, visible=view.visible & is_past[:, None])
        attended = self._attend(view, chunk, self.passes != "denoise")
        return attended, put_layer(cache, layer, updated)

    def _attend(self, view: CacheView, chunk: Chunk, is_observed: bool) -> Attended:
        """Attention over past and chunk, in two parts, which costs no more than in one."""
        if not is_observed:
            return Attended(attend_past_and_self(chunk, view).out)
        # While there is warm-up, the first frames lie in the first slots.
        sink, history = view.split(self.sink_frames)
        local = attend_past_and_self(chunk, sink)
        full = merge(local, attend_view(chunk.q, history))
        # As the output projection takes them in.
        return Attended(full.out.astype(chunk.q.dtype), local.out.astype(chunk.q.dtype))

    def init_statistics(self, spec: CacheSpec, num_layers: int) -> StreamStatistics:
        width = spec.num_heads * spec.head_dim
        return absorption.empty_statistics(num_layers, spec.batch, width=width, affine=self.affine)

    def observe(
        self, statistics: StreamStatistics, layer: LayerIndex, chunk: Chunk, attended: Attended
    ) -> StreamStatistics:
        if attended.local is None:
            return statistics
        new = absorption.stream_statistics(attended.local, attended.out, self.affine)
        if not self.include_first_chunk:
            new = jax.tree.map(lambda x: jnp.where(chunk.start_frame > 0, x, 0.0), new)
        return put_layer(
            statistics, layer, jax.tree.map(jnp.add, take_layer(statistics, layer), new)
        )

    def advance(
        self,
        frames_made: int,
        cache: StackedCache,
        statistics: StreamStatistics,
        output_kernels: Float[Array, "L D D"],
    ) -> tuple[StackedPolicy, StackedCache, StreamStatistics | None]:
        """The transition, when the warm-up is over.

        What is no longer needed is released before room is taken for what comes next.

        Raises:
          ValueError: no attention was gathered, or the ridge is too small for float32.
        """
        if frames_made != self.warmup_frames:
            return self, cache, statistics
        absorbed = self._absorb(statistics, output_kernels)
        split = split_layers(
            cache,
            absorbed.is_local,
            sink_frames=self.sink_frames,
            output_delta=absorbed.output_delta,
            residuals=absorbed.residuals,
        )
        return AbsorbedISPA(self.base), split, None

    def _absorb(self, statistics: StreamStatistics, kernels: Float[Array, "L D D"]) -> Absorption:
        """Chooses layers and solves for their dW; releases ``statistics``."""
        full, lost = map(_of_all_videos, absorption.energies(statistics, kernels))
        if np.any(full == 0):
            raise ValueError(
                f"warmup_frames={self.warmup_frames} had no chunk of which attention is gathered "
                f"(passes={self.passes!r}, include_first_chunk={self.include_first_chunk}): warm "
                "up longer, or gather more; a prefix has no denoise passes"
            )
        statistics.full_full.delete()
        before, after = lost / full, np.full_like(full, np.nan)
        is_chosen_by_solution = self.layers is None and self.select == "post"
        is_local = np.full_like(before, True, bool)
        if not is_chosen_by_solution:
            is_local = self._choose(before)
        deltas = None
        if self.absorb or is_chosen_by_solution:
            layers = layers_of_rows(is_local)[1]
            deltas, gain = absorption.solve_layers(
                statistics.local_local, statistics.local_full, kernels, layers,
                self.ridge, self.mu0, self.rank,
            )  # fmt: skip
            own = lambda of_all: np.take_along_axis(of_all, layers, axis=0)
            left = (own(lost) - _of_all_videos(gain)) / own(full)
            if np.any(np.isfinite(own(before)) & ~np.isfinite(left)):
                raise ValueError(
                    f"mu0={self.mu0} is too small to solve for dW in float32: raise it"
                )
            np.put_along_axis(after, layers, left, axis=0)
        statistics.local_local.delete()
        statistics.local_full.delete()
        if is_chosen_by_solution:
            is_local = self._choose(after)
            deltas = take_rows(deltas, layers_of_rows(is_local)[1])
        delta = self._output_delta(deltas, kernels) if self.absorb and deltas is not None else None
        return Absorption(is_local, delta, (before, after))

    def _output_delta(
        self, deltas: Float[Array, "K B I D"], kernels: Float[Array, "L D D"]
    ) -> OutputDelta:
        """dW as the model adds it, in its own precision."""
        width = kernels.shape[-1]
        bias = deltas[..., width, :] if self.affine else jnp.zeros_like(deltas[..., 0, :])
        kernel = deltas[..., :width, :]
        return OutputDelta(*(x.astype(kernels.dtype) for x in (kernel, bias)))

    def _choose(self, residuals: Float[np.ndarray, "L B"]) -> Bool[np.ndarray, "L B"]:
        """The L-layers of each video, where the choice looks at residuals by these."""
        num_layers = len(residuals)
        places = np.arange(num_layers)
        if self.layers is not None:
            return np.broadcast_to(np.isin(places, self.layers)[:, None], residuals.shape)
        match self.select:
            case "first":
                scores = places
            case "last":
                scores = -places
            case "random":
                scores = np.random.default_rng(self.select_seed).permutation(num_layers)
            case _:
                return absorption.smallest(residuals, self.count(num_layers))
        scores = np.broadcast_to(scores[:, None], residuals.shape).astype(np.float32)
        return absorption.smallest(scores, self.count(num_layers))


def _of_all_videos(numbers: Float[Array, "R B"]) -> Float[np.ndarray, "R B"]:
    """On the host of every process, also those of videos that other processes make."""
    if numbers.is_fully_addressable:
        return np.asarray(numbers)
    return np.asarray(multihost_utils.process_allgather(numbers, tiled=True))


def _first_frames(base: Base, frames_made: int) -> int:
    """How many of the first frames lie as they were made, each in the slot of its number."""
    match base:
        case FullCache():
            return frames_made
        case SlidingWindow(window_size=size) | TetherCache(budget=size):
            # Until then nothing is displaced.
            return frames_made if frames_made <= size else base.sink_size
