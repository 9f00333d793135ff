"""3-D RoPE, against angles and complex rotations in float64 and complex128."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models.wan_oracle import rope_factors
from vidcache_jax.cache.slots import grid_positions
from vidcache_jax.ops.rope import (
    axis_pairs,
    integer_angles,
    rope_angles,
    turn_by_products,
    turn_pairs,
)
from vidcache_jax.ops.rope import rotate as plain_rotate
from vidcache_jax.testing import assert_close

FRAMES = (0, 1, 1023, 1024, 60_000, 10**6, 2**31 - 1)
HEAD_DIMS = (128, 32, 12, 8, 2)
rotate = jax.jit(plain_rotate)


def angle_bound(index):
    """Rounding of the three fixed-point factors (2^-33 turns each), of float32, cos and sin."""
    return 2 * np.pi * 2.0**-33 * (1023 + 1023 + index / 2**20) + 1e-6


def positions(frames, rows=1, columns=1):
    """[1, 1, T, 3], made without the package."""
    tokens = [(f, y, x) for f in frames for y in range(rows) for x in range(columns)]
    return jnp.asarray(np.array(tokens, np.int32)[None, None])


def heads(seed, num_tokens, head_dim, num_heads=2):
    shape = (1, num_heads, num_tokens, head_dim)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def turned(x, factors):
    """Adjacent channels as one complex number, complex128; factors [T, pairs]."""
    pairs = np.asarray(x, np.float64).reshape(*x.shape[:-1], -1, 2)
    out = (pairs[..., 0] + 1j * pairs[..., 1]) * factors
    return np.stack([out.real, out.imag], axis=-1).reshape(x.shape)


@pytest.mark.parametrize(
    ("head_dim", "pairs"),
    [(128, (22, 21, 21)), (32, (6, 5, 5)), (12, (2, 2, 2)), (8, (2, 1, 1)), (2, (1, 0, 0))],
)
def test_axis_pairs(head_dim, pairs):
    assert axis_pairs(head_dim) == pairs


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("frame", FRAMES)
def test_rotation_is_exact_at_any_frame(head_dim, frame):
    x = heads(frame % 97, 6, head_dim)
    out = rotate(jnp.asarray(x), positions([frame], 2, 3))
    expected = turned(x, rope_factors(head_dim, [frame], 2, 3))
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, expected, rtol=0, atol=4 * angle_bound(frame))


def test_a_float32_product_would_not_pass():
    """The bound of the test above rejects the naive formula at the frames of an hour."""
    frequencies = 10000.0 ** -(np.arange(22) / 22)
    exact = np.exp(1j * 60_000 * frequencies)
    naive = np.exp(1j * (np.float32(60_000) * frequencies.astype(np.float32)).astype(np.float64))
    assert np.abs(naive - exact).max() > 100 * angle_bound(60_000)


@settings(max_examples=50)
@given(
    indices=st.lists(st.integers(0, 2**31 - 1), min_size=4, max_size=4),
    frequencies=st.lists(st.floats(1e-4, 1.0), min_size=3, max_size=3),
)
def test_angles_of_any_index_and_frequency(indices, frequencies):
    # Not jitted: the frequencies are constants of a program.
    index, frequency = np.array(indices), np.array(frequencies)
    angles = np.asarray(integer_angles(jnp.asarray(index, jnp.int32), frequency), np.float64)
    assert angles.shape == (4, 3) and np.abs(angles).max() <= np.pi + 1e-6
    error = np.abs(np.exp(1j * angles) - np.exp(1j * (index[:, None] * frequency)))
    assert (error <= angle_bound(index)[:, None]).all()


def test_negative_positions_turn_backwards():
    x = jnp.asarray(heads(0, 3, 12))
    there = rotate(x, positions([5, 1000, 70_000]))
    assert_close(rotate(there, -positions([5, 1000, 70_000])), x)


def test_position_zero_changes_nothing():
    x = jnp.asarray(heads(0, 4, 12))
    np.testing.assert_array_equal(rotate(x, jnp.zeros((1, 1, 4, 3), jnp.int32)), x)


def test_channels_belong_to_frame_then_row_then_column():
    """A token at (f, 0, 0) moves only the first channels, and so on."""
    x = jnp.ones((1, 1, 1, 128))
    owned = {0: range(0, 44), 1: range(44, 86), 2: range(86, 128)}
    for axis, channels in owned.items():
        place = np.zeros((1, 1, 1, 3), np.int32)
        place[..., axis] = 7
        moved = np.flatnonzero(
            np.abs(np.asarray(rotate(x, jnp.asarray(place))) - 1)[0, 0, 0] > 1e-7
        )
        assert set(moved) <= set(channels) and len(moved) > 0.9 * len(channels)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_norm_of_every_pair_is_kept(head_dim):
    x = heads(1, 12, head_dim)
    out = np.asarray(rotate(jnp.asarray(x), positions([3, 60_000], 2, 3)))
    norm = lambda x: np.hypot(x[..., 0::2], x[..., 1::2])
    assert_close(norm(out), norm(x))


@pytest.mark.parametrize("shift", [1, 1023, 60_000, 10**6])
def test_products_depend_on_the_difference_of_positions_only(shift):
    q, k = jnp.asarray(heads(2, 1, 128)), jnp.asarray(heads(3, 1, 128))

    def product(frame_q, frame_k):
        turned_q, turned_k = rotate(q, positions([frame_q])), rotate(k, positions([frame_k]))
        return np.sum(np.asarray(turned_q) * np.asarray(turned_k), axis=-1)

    np.testing.assert_allclose(product(17 + shift, 4 + shift), product(17, 4), atol=1e-4)
    assert np.abs(product(17, 4) - product(17, 5)).max() > 1e-2


def test_one_position_set_per_head():
    x = jnp.asarray(heads(4, 2, 12, num_heads=2))
    each = np.concatenate([positions([1, 2]), positions([9, 4])], axis=1)
    out = rotate(x, jnp.asarray(each))
    for head, frames in enumerate(([1, 2], [9, 4])):
        np.testing.assert_array_equal(out[:, head], rotate(x, positions(frames))[:, head])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_the_form_for_tpus_is_exact(dtype):
    x, angles = jnp.asarray(heads(6, 9, 128), dtype), jnp.asarray(heads(7, 9, 64, num_heads=1))
    one, two = (
        turn(x, jnp.cos(angles), jnp.sin(angles)) for turn in (turn_pairs, turn_by_products)
    )
    np.testing.assert_array_equal(one, two)
    lowered = jax.jit(plain_rotate).trace(x, positions(range(9))).lower(lowering_platforms=("tpu",))
    assert "dot_general" in lowered.as_text()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_is_rounded_once(dtype):
    x = jnp.asarray(heads(5, 6, 32), dtype)
    place = positions([60_000], 2, 3)
    out = rotate(x, place)
    assert out.dtype == dtype
    exact = rotate(x.astype(jnp.float32), place)
    np.testing.assert_array_equal(out, exact.astype(dtype))


def test_grid_positions_run_row_by_row_for_each_video():
    place = grid_positions(jnp.asarray([[7, 2], [5, 60_000]], jnp.int32), (2, 3))
    assert place.shape == (2, 1, 12, 3) and place.dtype == jnp.int32
    np.testing.assert_array_equal(place[:1], positions([7, 2], 2, 3))
    np.testing.assert_array_equal(place[1:], positions([5, 60_000], 2, 3))


def test_angles_shape_and_order():
    angles = jax.jit(rope_angles, static_argnums=1)(positions([2], 2, 3), 12)
    assert angles.shape == (1, 1, 6, 6)
    # Token (2, 1, 2): two pairs each of frame, row and column, at frequencies 1 and 1/100.
    assert_close(angles[0, 0, 5], [2, 0.02, 1, 0.01, 2, 0.02])


def test_jit_changes_nothing():
    x = jnp.asarray(heads(6, 2, 12))
    place = positions([60_000, 10**6])
    np.testing.assert_allclose(rotate(x, place), plain_rotate(x, place), atol=1e-6)
