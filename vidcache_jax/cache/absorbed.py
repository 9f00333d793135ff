"""The second life of ISPA's cache: some layers have no history, their weights know it instead.

F-layers keep the base policy's cache. L-layers hold the sink alone, attend to it and to their own
chunk, and project with W + dW. Which layers are which differs from video to video and is data; the
two kinds lie in slabs of their own, so that what L-layers do not hold is not allocated.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vidcache_jax.array_typing import FrameNumber
from vidcache_jax.cache import slots
from vidcache_jax.cache.attend import attend_past_and_self, attend_view
from vidcache_jax.cache.full import FullCache
from vidcache_jax.cache.policy import CachePolicy, LayerIndex, StackedPolicy
from vidcache_jax.cache.sliding_window import SlidingWindow
from vidcache_jax.cache.state import (
    Attended,
    CacheView,
    Chunk,
    LayerCache,
    OutputDelta,
    SlotCache,
)
from vidcache_jax.cache.tether_cache import TetherCache, TetherState
from vidcache_jax.cache.working_copy import WorkingCopy, attend_copy_and_self, working_copy

Base = SlidingWindow | FullCache | TetherCache
"""Policies of frames in slots, in which the first frames of a video can lie as they were made."""


def slots_of(cache: SlotCache | TetherState) -> SlotCache:
    """The slots of a base policy's cache, of one layer or stacked."""
    return cache if isinstance(cache, SlotCache) else cache.slots


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AbsorbedCache:
    """K local layers and L - K others, of each video its own.

    Layer l of video b is row ``row[l, b]`` of ``sinks`` if ``is_local[l, b]``, else of ``windows``.
    """

    windows: LayerCache
    """Of the base policy, [L - K, B, ...]"""
    sinks: SlotCache
    """[K, B, ...], written once."""
    output_delta: OutputDelta | None
    """dW of the L-layers, [K, B, ...]; None: nothing was absorbed."""
    is_local: Bool[Array, "*stack L B"]
    row: Int[Array, "*stack L B"]
    residual_before: Float[Array, "*stack L B"]
    """``||A_full W - A_local W'||^2 / ||A_full W||^2`` in the warm-up (`absorption`), with W' = W:
    what each layer missed had it lost its history."""
    residual_after: Float[Array, "*stack L B"]
    """The same with W' = W + dW; NaN where there was no need to solve for dW."""

    @property
    def share_kept(self) -> float:
        """Keys and values held, of those that all layers would hold under the base policy.

        ``1 - K / L (1 - S / W)`` with S frames in a sink and W in a window; dW lies beside them.
        """
        held, sinks = (leaf.k.shape for leaf in (slots_of(self.windows), self.sinks))
        before = (held[0] + sinks[0]) * held[-2]
        return (held[0] * held[-2] + sinks[0] * sinks[-2]) / before


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PreparedAbsorbed:
    """What the denoise passes of a chunk share."""

    cache: AbsorbedCache
    windows: WorkingCopy
    """Of the F-layers, keys rotated."""


@dataclasses.dataclass(frozen=True)
class AbsorbedISPA(StackedPolicy):
    """What `ISPA.advance` hands over to; a video does not begin with it.

    Attributes:
      base: what an F-layer sees, and where every layer sees its own chunk.
    """

    base: CachePolicy

    @property
    def max_frames(self) -> int | None:
        return self.base.max_frames

    def prepare(
        self, cache: AbsorbedCache, start_frame: FrameNumber, num_frames: int
    ) -> PreparedAbsorbed:
        read = lambda own: self.base.read(own, start_frame, num_frames)
        return PreparedAbsorbed(cache, working_copy(read, cache.windows))

    def attend(
        self, prepared: PreparedAbsorbed, layer: LayerIndex, chunk: Chunk, num_frames: int
    ) -> Attended:
        cache, windows = prepared.cache, prepared.windows

        def one_video(video: Int[Array, ""]) -> Array:
            row, own = cache.row[layer, video], _video(chunk, video)

            def with_history() -> Array:
                held = _stack_of_one(windows, row, video)
                return attend_copy_and_self(own, held, jnp.zeros_like(row)).out[0]

            # Positions are the same in all layers.
            position = _take(windows.query_position, jnp.zeros_like(row), video)
            # A branch for each video, which one program for the batch could not take: no FLOP of
            # an L-layer goes to history.
            return jax.lax.cond(
                cache.is_local[layer, video],
                lambda: _attend_locally(cache, row, video, own, position),
                with_history,
            )

        return Attended(jax.lax.map(one_video, _videos(chunk)))

    def update(
        self, cache: AbsorbedCache, layer: LayerIndex, chunk: Chunk, num_frames: int
    ) -> tuple[Attended, AbsorbedCache]:
        """L-layers write nothing: their sink is older than they are."""

        def one_video(windows: LayerCache, video: Int[Array, ""]) -> tuple[LayerCache, Array]:
            row, own = cache.row[layer, video], _video(chunk, video)
            # For an L-layer any row will do (`dynamic_slice` clamps): its bits are put back.
            held = _take(windows, row, video)
            # Positions are the same in all layers. Of this row nothing else is looked at.
            any_row = _take(windows, jnp.zeros_like(row), video)
            position = self.base.read(any_row, own.start_frame, num_frames).query_position

            def with_history() -> tuple[LayerCache, Array]:
                updated = self.base.commit(held, own)
                view = self.base.read(updated, own.start_frame, num_frames)
                return updated, attend_view(own.q, view).out[0]

            # Branches over one row, not over the slab, which XLA would copy for them.
            updated, out = jax.lax.cond(
                cache.is_local[layer, video],
                lambda: (held, _attend_locally(cache, row, video, own, position)),
                with_history,
            )
            return _put(windows, row, video, updated), out

        windows, out = jax.lax.scan(one_video, cache.windows, _videos(chunk))
        return Attended(out), dataclasses.replace(cache, windows=windows)

    def output_delta(self, cache: AbsorbedCache, layer: LayerIndex) -> OutputDelta | None:
        if cache.output_delta is None:
            return None
        is_local = cache.is_local[layer]
        rows = jnp.where(is_local, cache.row[layer], 0)

        def own(leaf: Float[Array, "K B ..."]) -> Float[Array, "B ..."]:
            taken = leaf[rows, jnp.arange(leaf.shape[1], dtype=jnp.int32)]
            mask = is_local.reshape(-1, *(1,) * (taken.ndim - 1))
            return jnp.where(mask, taken, jnp.zeros((), taken.dtype))

        return jax.tree.map(own, cache.output_delta)

    def fill(
        self, cache: AbsorbedCache, start_frame: FrameNumber, num_frames: int
    ) -> Float[Array, ""]:
        windows = jax.vmap(lambda layer: self.base.read(layer, start_frame, num_frames).visible)
        visible = windows(cache.windows).astype(jnp.float32)
        sinks = cache.sinks.frame_index.size
        return (jnp.sum(visible) + sinks) / (visible.size + sinks)


def _attend_locally(
    cache: AbsorbedCache,
    row: Int[Array, ""],
    video: Int[Array, ""],
    own: Chunk,
    position: Int[Array, "B G T 3"],
) -> Float[Array, "N T H"]:
    """Over sink and chunk: frame f of the sink at position f, the chunk where F-layers have it."""
    sink = _take(cache.sinks, row, video)
    view = CacheView(
        k=sink.k,
        v=sink.v,
        position=slots.grid_positions(sink.frame_index, sink.grid),
        visible=jnp.ones_like(sink.frame_index, bool)[:, None],
        query_position=position,
    )
    return attend_past_and_self(own, view).out[0]


def layers_of_rows(
    is_local: Bool[np.ndarray, "L B"],
) -> tuple[Int[np.ndarray, "F_layers B"], Int[np.ndarray, "K B"]]:
    """The F-layers and the L-layers of each video, both in the order of the model."""
    order = np.argsort(is_local, axis=0, kind="stable")
    num_local = int(is_local[:, 0].sum())
    window_layers, sink_layers = np.split(order, [len(order) - num_local])
    return window_layers, sink_layers


@functools.partial(jax.jit, static_argnames=("tokens",))
def take_rows(
    leaf: Float[Array, "L B ..."] | Int[Array, "L B ..."],
    layers: Int[Array | np.ndarray, "R B"],
    tokens: int | None = None,
) -> Float[Array, "R B ..."] | Int[Array, "R B ..."]:
    """Row r of video b is that of ``layers[r, b]``; of keys and values the first ``tokens``."""
    videos = jnp.broadcast_to(jnp.arange(layers.shape[1]), layers.shape)
    part = (layers, videos) if tokens is None else (layers, videos, slice(None), slice(tokens))
    # Indices are known to be good, and a check would cost a second result.
    return leaf.at[part].get(mode="promise_in_bounds")


def split_layers(
    cache: SlotCache | TetherState,
    is_local: Bool[np.ndarray, "L B"],
    *,
    sink_frames: int,
    output_delta: OutputDelta | None,
    residuals: tuple[Float[np.ndarray, "L B"], Float[np.ndarray, "L B"]],
) -> AbsorbedCache:
    """Lays the layers of a warm cache out anew; frame f < sink_frames lies in its slot f.

    Buffers of ``cache`` are released one by one, as soon as they are no longer needed.
    """
    window_layers, sink_layers = layers_of_rows(is_local)
    rows = np.concatenate([window_layers, sink_layers])
    row = np.argsort(rows, axis=0) - np.where(is_local, len(window_layers), 0)
    held = slots_of(cache)
    tokens = sink_frames * held.grid[0] * held.grid[1]
    sinks = SlotCache(
        k=take_rows(held.k, sink_layers, tokens),
        v=take_rows(held.v, sink_layers, tokens),
        frame_index=take_rows(held.frame_index[..., :sink_frames], sink_layers),
        grid=held.grid,
    )

    def keep(leaf: Array) -> Array:
        kept = jax.block_until_ready(take_rows(leaf, window_layers))
        leaf.delete()
        return kept

    return AbsorbedCache(
        windows=jax.tree.map(keep, cache),
        sinks=jax.block_until_ready(sinks),
        output_delta=output_delta,
        is_local=jnp.asarray(is_local),
        row=jnp.asarray(row, jnp.int32),
        residual_before=jnp.asarray(residuals[0], jnp.float32),
        residual_after=jnp.asarray(residuals[1], jnp.float32),
    )


def _take(slab: LayerCache, row: Int[Array, ""], video: Int[Array, ""]) -> LayerCache:
    """One row of one video, as the cache of a layer with a batch of one."""
    return jax.tree.map(lambda leaf: leaf[0], _stack_of_one(slab, row, video))


def _stack_of_one(slab: Any, row: Int[Array, ""], video: Int[Array, ""]) -> Any:
    """One row of one video: [1, 1, ...]"""

    def take(leaf: Array) -> Array:
        corner = (row, video, *(jnp.zeros((), jnp.int32),) * (leaf.ndim - 2))
        return jax.lax.dynamic_slice(leaf, corner, (1, 1, *leaf.shape[2:]))

    return jax.tree.map(take, slab)


def _put(
    slab: LayerCache, row: Int[Array, ""], video: Int[Array, ""], updated: LayerCache
) -> LayerCache:
    def put(leaf: Array, new: Array) -> Array:
        corner = (row, video, *(jnp.zeros((), jnp.int32),) * (leaf.ndim - 2))
        return jax.lax.dynamic_update_slice(leaf, new[None], corner)

    return jax.tree.map(put, slab, updated)


def _videos(chunk: Chunk) -> Int[Array, " B"]:
    return jnp.arange(chunk.q.shape[0], dtype=jnp.int32)


def _video(chunk: Chunk, video: Int[Array, ""]) -> Chunk:
    """A chunk of one video."""
    take = lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, video, 1, axis=0)
    return Chunk(
        q=take(chunk.q),
        k=take(chunk.k),
        v=take(chunk.v),
        text_k=take(chunk.text_k),
        is_text=take(chunk.is_text),
        start_frame=chunk.start_frame,
    )
