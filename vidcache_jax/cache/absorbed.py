"""The second life of ISPA's cache: some layers have no history, their weights know it instead.

F-layers keep the base window. L-layers hold the sink alone, attend to it and to their own chunk,
and project with W + dW. Which layers are which differs from video to video and is data; the two
kinds lie in slabs of their own, so that what L-layers do not hold is not allocated.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vidcache_jax.array_typing import FrameNumber
from vidcache_jax.cache.attend import attend_past_and_self
from vidcache_jax.cache.policy import LayerIndex, StackedPolicy
from vidcache_jax.cache.sliding_window import SlidingWindow
from vidcache_jax.cache.state import Attended, Chunk, SlotCache


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AbsorbedCache:
    """K local layers and L - K others, of each video its own.

    Layer l of video b is row ``row[l, b]`` of ``sinks`` if ``is_local[l, b]``, else of ``windows``.
    """

    windows: SlotCache
    """[L - K, B, ...]"""
    sinks: SlotCache
    """[K, B, ...], written once."""
    output_delta: Float[Array, "K B D D"] | None
    """dW of the L-layers; None: nothing was absorbed."""
    is_local: Bool[Array, "L B"]
    row: Int[Array, "L B"]
    residual_before: Float[Array, "L B"]
    """Of every layer, had it lost its history with W as it was (`absorption.residual`)."""
    residual_after: Float[Array, "L B"]
    """The same with W + dW."""


@dataclasses.dataclass(frozen=True)
class AbsorbedISPA(StackedPolicy):
    """What `ISPA.advance` hands over to; a video does not begin with it.

    Attributes:
      window: what an F-layer sees.
      sink: the window of which an L-layer sees the sink and the chunk, at its positions.
    """

    window: SlidingWindow
    sink: SlidingWindow

    def attend(
        self, cache: AbsorbedCache, layer: LayerIndex, chunk: Chunk, num_frames: int
    ) -> Attended:
        def one_video(video: Int[Array, ""]) -> Array:
            row, own = cache.row[layer, video], _video(chunk, video)

            # A branch for each video, which one program for the batch could not take: no FLOP of
            # an L-layer goes to history.
            return jax.lax.cond(
                cache.is_local[layer, video],
                lambda: _attend(self.sink, _take(cache.sinks, row, video), own, num_frames),
                lambda: _attend(self.window, _take(cache.windows, row, video), own, num_frames),
            )

        return Attended(jax.lax.map(one_video, _videos(chunk)))

    def update(
        self, cache: AbsorbedCache, layer: LayerIndex, chunk: Chunk, num_frames: int
    ) -> tuple[Attended, AbsorbedCache]:
        """L-layers write nothing: their sink is older than they are."""

        def one_video(windows: SlotCache, video: Int[Array, ""]) -> tuple[SlotCache, Array]:
            row, own = cache.row[layer, video], _video(chunk, video)
            # For an L-layer any row will do (`dynamic_slice` clamps): its bits are put back.
            held, sink = _take(windows, row, video), _take(cache.sinks, row, video)

            # Branches over one row, not over the slab, which XLA would copy for them.
            updated, out = jax.lax.cond(
                cache.is_local[layer, video],
                lambda: (held, _attend(self.sink, sink, own, num_frames)),
                lambda: (
                    self.window.commit(held, own),
                    _attend(self.window, held, own, num_frames),
                ),
            )
            return _put(windows, row, video, updated), out

        windows, out = jax.lax.scan(one_video, cache.windows, _videos(chunk))
        return Attended(out), dataclasses.replace(cache, windows=windows)

    def output_delta(self, cache: AbsorbedCache, layer: LayerIndex) -> Float[Array, "B D D"] | None:
        if cache.output_delta is None:
            return None
        videos = jnp.arange(cache.row.shape[1], dtype=jnp.int32)
        rows = jnp.where(cache.is_local[layer], cache.row[layer], 0)
        own = cache.output_delta[rows, videos]
        return jnp.where(cache.is_local[layer][:, None, None], own, jnp.zeros((), own.dtype))

    def fill(
        self, cache: AbsorbedCache, start_frame: FrameNumber, num_frames: int
    ) -> Float[Array, ""]:
        windows = jax.vmap(lambda layer: self.window.read(layer, start_frame, num_frames).visible)
        visible = windows(cache.windows).astype(jnp.float32)
        sinks = cache.sinks.frame_index.size
        return (jnp.sum(visible) + sinks) / (visible.size + sinks)


def split_layers(
    cache: SlotCache,
    is_local: Bool[np.ndarray, "L B"],
    *,
    sink_frames: int,
    deltas: Float[Array, "L B D D"] | None,
    residuals: tuple[Float[Array, "L B"], Float[Array, "L B"]],
) -> AbsorbedCache:
    """Lays the layers of a warm window out anew; frame f < sink_frames lies in its slot f.

    Buffers of ``cache`` are released one by one, as soon as they are no longer needed.
    """
    num_local = int(is_local[:, 0].sum())
    # Stable: F-layers first, both kinds in the order of the model.
    order = np.argsort(is_local, axis=0, kind="stable")
    window_layers, sink_layers = np.split(order, [len(order) - num_local])
    row = np.argsort(order, axis=0) - np.where(is_local, len(window_layers), 0)
    tokens = sink_frames * cache.grid[0] * cache.grid[1]

    def rows(leaf: Array, layers: Int[np.ndarray, "R B"]) -> Array:
        return leaf[layers, np.broadcast_to(np.arange(layers.shape[1]), layers.shape)]

    def split(leaf: Array, sink: Array) -> tuple[Array, Array]:
        halves = jax.block_until_ready((rows(leaf, window_layers), rows(sink, sink_layers)))
        leaf.delete()
        return halves

    window_k, sink_k = split(cache.k, cache.k[..., :tokens, :])
    window_v, sink_v = split(cache.v, cache.v[..., :tokens, :])
    window_frames, sink_frame_index = split(cache.frame_index, cache.frame_index[..., :sink_frames])
    return AbsorbedCache(
        windows=SlotCache(window_k, window_v, window_frames, cache.grid),
        sinks=SlotCache(sink_k, sink_v, sink_frame_index, cache.grid),
        output_delta=None if deltas is None else rows(deltas, sink_layers),
        is_local=jnp.asarray(is_local),
        row=jnp.asarray(row, jnp.int32),
        residual_before=residuals[0],
        residual_after=residuals[1],
    )


def _attend(policy: SlidingWindow, held: SlotCache, own: Chunk, num_frames: int) -> Array:
    """What one video's chunk takes up under a window, [N, T, H]."""
    view = policy.read(held, own.start_frame, num_frames)
    return attend_past_and_self(own, view).out[0]


def _take(slab: SlotCache, row: Int[Array, ""], video: Int[Array, ""]) -> SlotCache:
    """One row of one video, as the cache of a layer with a batch of one."""

    def take(leaf: Array) -> Array:
        corner = (row, video, *(jnp.zeros((), jnp.int32),) * (leaf.ndim - 2))
        return jax.lax.dynamic_slice(leaf, corner, (1, 1, *leaf.shape[2:]))[0]

    return jax.tree.map(take, slab)


def _put(
    slab: SlotCache, row: Int[Array, ""], video: Int[Array, ""], updated: SlotCache
) -> SlotCache:
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
