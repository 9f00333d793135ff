"""Fixed-shape operations on a `SlotCache`: allocate, write frames, list tokens."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vidcache_jax.array_typing import FrameNumber
from vidcache_jax.cache.state import CacheSpec, SlotCache


def empty_slots(spec: CacheSpec, num_slots: int) -> SlotCache:
    """K empty slots."""
    shape = (spec.batch, spec.num_heads, num_slots * spec.tokens_per_frame, spec.head_dim)
    return SlotCache(
        k=jnp.zeros(shape, spec.dtype),
        v=jnp.zeros(shape, spec.dtype),
        frame_index=jnp.full((spec.batch, num_slots), -1, jnp.int32),
        grid=spec.grid,
    )


def write_frames(
    cache: SlotCache,
    slots: Int[Array, "#B F"],
    k: Float[Array, "B N T H"],
    v: Float[Array, "B N T H"],
    frame_index: Int[Array, "#B F"],
) -> SlotCache:
    """Writes frame i of (k, v) into ``slots[:, i]``; every other slot keeps its bits.

    One contiguous update per frame, and per video where each has slots of its own: XLA does these
    in place on a donated buffer.
    """
    tokens = cache.grid[0] * cache.grid[1]
    batch = cache.frame_index.shape[0]
    frame_index = jnp.broadcast_to(frame_index, (batch, slots.shape[1])).astype(jnp.int32)
    k, v = k.astype(cache.k.dtype), v.astype(cache.v.dtype)
    videos_each = batch // slots.shape[0]
    new_k, new_v, new_index = cache.k, cache.v, cache.frame_index
    zero = jnp.zeros((), slots.dtype)
    for row, i in itertools.product(range(slots.shape[0]), range(slots.shape[1])):
        videos = slice(row * videos_each, (row + 1) * videos_each)
        own = slice(i * tokens, (i + 1) * tokens)
        first, slot = zero + videos.start, slots[row, i]
        corner = (first, zero, slot * tokens, zero)
        new_k = jax.lax.dynamic_update_slice(new_k, k[videos, :, own], corner)
        new_v = jax.lax.dynamic_update_slice(new_v, v[videos, :, own], corner)
        number = frame_index[videos, i : i + 1]
        new_index = jax.lax.dynamic_update_slice(new_index, number, (first, slot))
    return dataclasses.replace(cache, k=new_k, v=new_v, frame_index=new_index)


def take_frames(
    cache: SlotCache, slots: Int[Array, "B F"]
) -> tuple[Float[Array, "B N T H"], Float[Array, "B N T H"]]:
    """Keys and values of the frames in each video's ``slots``, in that order."""
    tokens = cache.grid[0] * cache.grid[1]

    def take(stored: Float[Array, "N S H"], slots: Int[Array, " F"]):
        part = lambda slot: jax.lax.dynamic_slice_in_dim(stored, slot * tokens, tokens, axis=1)
        return jnp.concatenate([part(slots[i]) for i in range(slots.shape[0])], axis=1)

    return jax.vmap(take)(cache.k, slots), jax.vmap(take)(cache.v, slots)


def order_positions(
    frame_index: Int[Array, "B K"], visible: Bool[Array, "B K"]
) -> Int[Array, "B K"]:
    """Place of each visible slot in the order of the visible frame numbers: 0 ... n - 1.

    Example: frames 7, 3, 9 with 9 hidden have the places 1, 0, and a number without meaning.
    """
    earlier = visible[:, None, :] & (frame_index[:, None, :] < frame_index[:, :, None])
    return jnp.sum(earlier, axis=-1, dtype=jnp.int32)


def grid_positions(
    frame_positions: Int[Array, "B K"], grid: tuple[int, int]
) -> Int[Array, "B 1 S 3"]:
    """(frame, row, column) of every token of K frames laid out row by row.

    Example: frame position 7 on a (1, 2) grid gives [[7, 0, 0], [7, 0, 1]].
    """
    batch, frames = frame_positions.shape
    rows, columns = grid
    shape = (batch, 1, frames, rows, columns)
    frame = jnp.broadcast_to(frame_positions[:, None, :, None, None], shape)
    row = jnp.broadcast_to(jnp.arange(rows, dtype=jnp.int32)[:, None], (rows, columns))
    column = jnp.broadcast_to(jnp.arange(columns, dtype=jnp.int32), (rows, columns))
    axes = [frame.astype(jnp.int32)] + [
        jnp.broadcast_to(axis[None, None, None], shape) for axis in (row, column)
    ]
    return jnp.stack(axes, axis=-1).reshape(batch, 1, -1, 3)


def chunk_frames(start_frame: FrameNumber, num_frames: int, batch: int) -> Int[Array, "B F"]:
    """Frame numbers of a chunk, the same for every video of the batch."""
    frames = jnp.asarray(start_frame, jnp.int32) + jnp.arange(num_frames, dtype=jnp.int32)
    return jnp.broadcast_to(frames, (batch, num_frames))
