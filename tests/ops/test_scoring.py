"""Column means against the dense softmax in float64 NumPy."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.cache.oracle import as_complex
from vidcache_jax.ops.attention import attention
from vidcache_jax.ops.rope import rotate
from vidcache_jax.ops.scoring import column_means
from vidcache_jax.ops.scoring.api import IMPLEMENTATIONS
from vidcache_jax.ops.scoring.ref import column_means as reference
from vidcache_jax.testing import same_bits

B, N, T, S, H = 2, 3, 12, 30, 14
PAIRS = (3, 2, 2)
Means = collections.namedtuple("Means", "weight logit")


def inputs(seed=0, scale=1.0, groups=N):
    rng = np.random.default_rng(seed)
    draw = lambda count: (scale * rng.standard_normal((B, N, count, H))).astype(np.float32)
    place = lambda count: rng.integers(0, 20, (B, groups, count, 3)).astype(np.int32)
    visible = rng.random((B, groups, S)) < 0.7
    visible[..., 0] = True
    return draw(T), place(T), draw(S), place(S), visible


def means_of(arrays, scoring=column_means, **options):
    """At one step."""
    q, q_position, k, k_position, visible = map(jnp.asarray, arrays)
    return at_step(scoring(q, q_position, k, k_position, visible, **options), 0)


def at_step(means, step):
    return Means(means.weight[:, :, step], means.logit[:, :, step])


def turned(x, position):
    """Complex pairs, rotated in float64: the first by frame, then by row, then by column."""
    angles = np.concatenate(
        [
            position[..., axis, None] * 10000.0 ** (-np.arange(n) / n)
            for axis, n in enumerate(PAIRS)
        ],
        axis=-1,
    )
    return as_complex(x) * np.exp(1j * angles)


def oracle(q, q_position, k, k_position, visible):
    """(weight, logit), from the whole query-by-key matrix."""
    q, k = turned(q, q_position), turned(k, k_position)
    z = np.einsum("bntp,bnsp->bnts", q, k.conj()).real / np.sqrt(H)
    seen = np.broadcast_to(visible[:, :, None], z.shape)
    z_seen = np.where(seen, z, -np.inf)
    weights = np.exp(z_seen - z_seen.max(axis=-1, keepdims=True))
    weights = weights / weights.sum(axis=-1, keepdims=True)
    return weights.mean(axis=2), np.where(seen[:, :, 0], z.mean(axis=2), 0)


def check(means, expected):
    np.testing.assert_allclose(means.weight, expected[0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(means.logit, expected[1], rtol=0, atol=1e-5)
    np.testing.assert_allclose(np.sum(means.weight, axis=-1), 1, rtol=1e-5)


@pytest.mark.parametrize("implementation", [None, *IMPLEMENTATIONS])
@pytest.mark.parametrize("groups", [1, N])
def test_equals_the_dense_column_means(implementation, groups):
    given = inputs(groups=groups)
    means = means_of(given, implementation=implementation)
    check(means, oracle(*given))


@pytest.mark.parametrize("blocks", [(5, 7), (1, 30), (12, 1), (4, 10)])
def test_blocks_change_nothing(blocks):
    given = inputs(seed=1)
    means = means_of(given, reference, most_queries=blocks[0], most_keys=blocks[1])
    check(means, oracle(*given))


def test_known_residuals_save_a_pass_and_change_nothing():
    given = inputs(seed=2)
    q, q_position, k, k_position, visible = map(jnp.asarray, given)
    attended = attention(rotate(q, q_position), rotate(k, k_position), k, visible[:, :, None])
    means = means_of(given, reference, attended=attended, most_queries=4, most_keys=10)
    check(means, oracle(*given))


@pytest.mark.parametrize("most_queries", [4, 24, 48])
def test_each_step_of_a_horizon_is_as_if_alone(most_queries):
    """Groups of a part of a step, of two steps, and of all four."""
    q, q_position, *keys = inputs(seed=3)
    given, ahead = map(jnp.asarray, (q, q_position, *keys)), (0, 1, 2, 5)
    means = reference(*given, ahead=ahead, most_queries=most_queries)
    for step, frames in enumerate(ahead):
        moved = q_position + np.array([frames, 0, 0])
        check(at_step(means, step), oracle(q, moved, *keys))


def test_one_winner_takes_all_without_overflow():
    given = inputs(scale=30.0)
    means = means_of(given)
    # Logits of 1e3 carry float32 rounding of 1e-4, which the exponential passes on.
    np.testing.assert_allclose(means.weight, oracle(*given)[0], atol=1e-3)


@pytest.mark.parametrize("garbage", [np.nan, np.inf, 1e30])
def test_invisible_keys_change_no_bit_and_receive_nothing(garbage):
    q, q_position, k, k_position, visible = inputs()
    spoilt = np.where(visible[..., None], k, np.float32(garbage))
    clean, other = (means_of((q, q_position, keys, k_position, visible)) for keys in (k, spoilt))
    assert all(map(same_bits, jax.tree.leaves(clean), jax.tree.leaves(other)))
    assert not np.asarray(other.weight)[~visible].any()


def test_queries_that_see_nothing_give_nothing():
    q, q_position, k, k_position, visible = inputs()
    visible[0, 1] = False
    means = means_of((q, q_position, k, k_position, visible))
    assert not np.asarray(means.weight)[0, 1].any()
    assert np.isfinite(means.weight).all()


def test_the_query_by_key_matrix_is_never_whole():
    """Temporaries grow with the queries and with the keys, not with their product."""
    shape = lambda tokens: jax.ShapeDtypeStruct((1, 2, tokens, 16), jnp.float32)
    place = lambda tokens: jax.ShapeDtypeStruct((1, 2, tokens, 3), jnp.int32)
    seen = jax.ShapeDtypeStruct((1, 2, 8192), jnp.bool_)
    lowered = reference.lower(shape(4096), place(4096), shape(8192), place(8192), seen)
    memory = lowered.compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 2 * 4096 * 8192 * 4 / 10


def test_unknown_implementation_is_named():
    with pytest.raises(ValueError, match=r"no scoring implementation 'fast'; there are \['xla'"):
        means_of(inputs(), implementation="fast")
