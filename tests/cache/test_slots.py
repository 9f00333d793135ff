import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.cache.against_oracle import tiny_spec
from vidcache_jax.cache import slots
from vidcache_jax.ops.frames import take_frames
from vidcache_jax.testing import random_chunk, same_bits


def test_empty_slots():
    cache = slots.empty_slots(tiny_spec(3, batch=2), 5)
    assert cache.k.shape == cache.v.shape == (2, 2, 10, 14)
    assert cache.k.dtype == cache.v.dtype == jnp.float32
    assert cache.frame_index.dtype == jnp.int32
    assert cache.frame_index.tolist() == [[-1] * 5] * 2
    assert cache.grid == (1, 2)


@pytest.mark.parametrize("places", [[1, 2, 3], [4, 0, 2], [3, 4, 0]])
@pytest.mark.parametrize("jit", [False, True])
def test_write_frames_puts_each_frame_in_its_slot_and_touches_no_other(places, jit):
    rng, spec = np.random.default_rng(0), tiny_spec(3, batch=2)
    noise = jnp.asarray(rng.standard_normal((2, 2, 10, 14)), jnp.float32).at[0, 0, 0].set(jnp.nan)
    cache = slots.SlotCache(noise, noise + 1, jnp.full((2, 5), 40, jnp.int32), spec.grid)
    chunk = random_chunk(rng, spec)
    write = jax.jit(slots.write_frames) if jit else slots.write_frames
    frames = jnp.arange(70, 73, dtype=jnp.int32)[None]
    written = write(cache, jnp.asarray([places], jnp.int32), chunk.k, chunk.v, frames)
    for slot in range(5):
        tokens = slice(2 * slot, 2 * slot + 2)
        if slot in places:
            frame = places.index(slot)
            own = slice(2 * frame, 2 * frame + 2)
            expected_k, expected_v = chunk.k[:, :, own], chunk.v[:, :, own]
            expected_number = 70 + frame
        else:
            expected_k, expected_v = cache.k[:, :, tokens], cache.v[:, :, tokens]
            expected_number = 40
        assert same_bits(written.k[:, :, tokens], expected_k)
        assert same_bits(written.v[:, :, tokens], expected_v)
        assert written.frame_index[:, slot].tolist() == [expected_number] * 2


def test_each_video_has_slots_and_frame_numbers_of_its_own():
    rng, spec = np.random.default_rng(0), tiny_spec(2, batch=2)
    cache, chunk = slots.empty_slots(spec, 4), random_chunk(rng, spec)
    places = jnp.asarray([[2, 0], [1, 3]], jnp.int32)
    numbers = jnp.asarray([[8, 9], [5, 6]], jnp.int32)
    written = slots.write_frames(cache, places, chunk.k, chunk.v, numbers)
    assert written.frame_index.tolist() == [[9, -1, 8, -1], [-1, 5, -1, 6]]
    for stored, own in ((written.k, chunk.k), (written.v, chunk.v)):
        assert same_bits(take_frames(stored, places, spec.tokens_per_frame), own)
    alone = slots.write_frames(
        slots.empty_slots(spec, 4), places[1:], chunk.k, chunk.v, numbers[1:]
    )
    assert same_bits(alone.k[1], written.k[1]) and same_bits(alone.v[1], written.v[1])


def test_order_positions_count_the_visible_frames_before():
    frames = jnp.asarray([[7, 3, 9, -1, 5], [0, 1, 2, 3, 4]], jnp.int32)
    visible = jnp.asarray([[True, True, False, False, True], [False, True, True, True, True]])
    places = np.asarray(slots.order_positions(frames, visible))
    assert places[0, [1, 4, 0]].tolist() == [0, 1, 2]
    assert places[1, 1:].tolist() == [0, 1, 2, 3]


def test_write_frames_keeps_the_dtype_of_the_cache():
    spec = tiny_spec(3)
    cache = slots.empty_slots(spec, 3)
    half = slots.SlotCache(
        cache.k.astype(jnp.bfloat16), cache.v.astype(jnp.bfloat16), cache.frame_index, cache.grid
    )
    chunk = random_chunk(np.random.default_rng(0), spec)
    places = jnp.arange(3, dtype=jnp.int32)[None]
    written = slots.write_frames(half, places, chunk.k, chunk.v, places)
    assert same_bits(written.k, chunk.k.astype(jnp.bfloat16))
    assert same_bits(written.v, chunk.v.astype(jnp.bfloat16))


def test_grid_positions_run_row_by_row():
    positions = slots.grid_positions(jnp.asarray([[7, -1]], jnp.int32), (2, 2))
    assert positions.dtype == jnp.int32
    assert positions.tolist() == [[[
        [7, 0, 0], [7, 0, 1], [7, 1, 0], [7, 1, 1],
        [-1, 0, 0], [-1, 0, 1], [-1, 1, 0], [-1, 1, 1],
    ]]]  # fmt: skip


@pytest.mark.parametrize("start", [0, 5, 2**31 - 3])
def test_chunk_frames_count_up_for_every_video(start):
    frames = slots.chunk_frames(jnp.asarray(start, jnp.int32), 3, 2)
    assert frames.dtype == jnp.int32
    assert frames.tolist() == [[start, start + 1, start + 2]] * 2
