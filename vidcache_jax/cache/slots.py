"""Fixed-shape operations on a `SlotCache`: allocate, write frames, list tokens."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from vidcache_jax.array_typing import FrameNumber, Visible
from vidcache_jax.cache.state import CacheSpec, Chunk, SlotCache


def empty_slots(spec: CacheSpec, num_slots: int) -> SlotCache:
    """K empty slots."""
    shape = (spec.batch, spec.num_heads, num_slots * spec.tokens_per_frame, spec.head_dim)
    return SlotCache(
        k=jnp.zeros(shape, spec.dtype),
        v=jnp.zeros(shape, spec.dtype),
        frame_index=jnp.full((spec.batch, num_slots), -1, jnp.int32),
        grid=spec.grid,
    )


def write_frames(cache: SlotCache, slots: Int[Array, " F"], chunk: Chunk) -> SlotCache:
    """Writes frame i of the chunk into ``slots[i]``; every other slot keeps its bits.

    One contiguous update per frame: XLA does these in place on a donated buffer.
    """
    k, v, frame_index = cache.k, cache.v, cache.frame_index
    tokens = cache.grid[0] * cache.grid[1]
    zero = jnp.zeros((), slots.dtype)
    for i in range(slots.shape[0]):
        own = slice(i * tokens, (i + 1) * tokens)
        corner = (zero, zero, slots[i] * tokens, zero)
        k = jax.lax.dynamic_update_slice(k, chunk.k[:, :, own].astype(k.dtype), corner)
        v = jax.lax.dynamic_update_slice(v, chunk.v[:, :, own].astype(v.dtype), corner)
        number = jnp.full((frame_index.shape[0], 1), chunk.start_frame + i, jnp.int32)
        frame_index = jax.lax.dynamic_update_slice(frame_index, number, (zero, slots[i]))
    return dataclasses.replace(cache, k=k, v=v, frame_index=frame_index)


def token_mask(visible_slots: Bool[Array, "B K"], tokens_per_frame: int) -> Visible:
    """Repeats a per-slot truth over the slot's tokens, for all heads: [B, 1, S]."""
    return jnp.repeat(visible_slots, tokens_per_frame, axis=1)[:, None]


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
