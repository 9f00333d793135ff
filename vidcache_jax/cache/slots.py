"""Fixed-shape operations on a `SlotCache`: allocate, write frames, list tokens."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vidcache_jax.array_typing import FrameNumber
from vidcache_jax.cache.state import CacheSpec, SlotCache
from vidcache_jax.ops.frames import put_frames


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
    """Writes frame i of (k, v) into ``slots[:, i]``; every other slot keeps its bits."""
    put = lambda stored, frames: put_frames(stored, slots, frames.astype(stored.dtype))
    index = write_numbers(cache.frame_index, slots, frame_index)
    return dataclasses.replace(cache, k=put(cache.k, k), v=put(cache.v, v), frame_index=index)


def write_numbers(
    frame_index: Int[Array, "B K"], slots: Int[Array, "#B F"], numbers: Int[Array, "#B F"]
) -> Int[Array, "B K"]:
    """Number i into ``slots[:, i]``."""
    shape = (frame_index.shape[0], slots.shape[1])
    numbers = jnp.broadcast_to(numbers, shape).astype(jnp.int32)
    # A number is the one token of a frame.
    as_token = lambda index: index[:, None, :, None]
    return put_frames(as_token(frame_index), slots, as_token(numbers))[:, 0, :, 0]


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
