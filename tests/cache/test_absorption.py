"""The mathematics of absorption, against rows that are there, in float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidcache_jax.cache import absorption
from vidcache_jax.cache.absorption import StreamStatistics
from vidcache_jax.testing import assert_close

ROWS, D = 300, 12


@pytest.fixture(scope="module")
def rows():
    """(A_local, A_full, W): the streams share most of what they hold."""
    rng = np.random.default_rng(0)
    local, kernel = rng.normal(size=(ROWS, D)), rng.normal(size=(D, D)) / D**0.5
    full = local @ rng.normal(size=(D, D)) / D**0.5 + 0.3 * rng.normal(size=(ROWS, D))
    return local, full, kernel


def statistics_of(local, full) -> StreamStatistics:
    products = (local.T @ local, local.T @ full, full.T @ full)
    return StreamStatistics(*(jnp.asarray(x, jnp.float32) for x in products))


def solved(local, full, kernel, mu, rank=None):
    statistics, kernel = statistics_of(local, full), jnp.asarray(kernel, jnp.float32)
    gram = statistics.local_local
    missed = absorption.missed(gram, statistics.local_full, kernel)
    return np.asarray(absorption.solve(gram, missed, jnp.asarray(mu, jnp.float32), rank))


def least_squares(local, full, kernel, mu):
    """Of the rows, with sqrt(mu) times the identity appended as rows."""
    inputs = local.shape[1]
    left = np.concatenate([local, mu**0.5 * np.eye(inputs)])
    right = np.concatenate([(full - local[:, :D]) @ kernel, np.zeros((inputs, D))])
    return np.linalg.lstsq(left, right, rcond=None)[0]


def residual(local, full, kernel, delta) -> float:
    """``||A_full W - A_local (W + dW)||^2`` over that of A_full W, from the statistics."""
    own = statistics_of(local, full)
    kernel, delta = (jnp.asarray(x, jnp.float32) for x in (kernel, delta))
    stacked = jax.tree.map(lambda x: x[None, None], own)
    energy, lost = (float(x[0, 0]) for x in absorption.energies(stacked, kernel[None]))
    missed = absorption.missed(own.local_local, own.local_full, kernel)
    return (lost - float(absorption.gain(own.local_local, missed, delta))) / energy


@pytest.mark.parametrize("mu", [1e-3, 1.0, 300.0])
def test_solution_is_that_of_least_squares(rows, mu):
    assert_close(solved(*rows, mu=mu), least_squares(*rows, mu=mu))


def test_what_is_linear_is_recovered(rows):
    local, _, kernel = rows
    linear = np.random.default_rng(1).normal(size=(D, D))
    delta = solved(local, local @ linear, kernel, 1e-4)
    assert_close(kernel + delta, linear @ kernel)
    assert abs(residual(local, local @ linear, kernel, delta)) < 1e-6


def test_an_infinite_ridge_absorbs_nothing(rows):
    assert np.abs(solved(*rows, mu=1e12)).max() < 1e-8


@pytest.mark.parametrize("rank", [1, 3, D])
def test_rank_keeps_the_largest_part_of_what_is_predicted(rows, rank):
    local = rows[0]
    whole = least_squares(*rows, mu=1.0)
    u, s, v = np.linalg.svd(local @ whole)
    best = (u[:, :D] * np.where(np.arange(D) < rank, s, 0)) @ v
    delta = solved(*rows, mu=1.0, rank=rank)
    assert np.linalg.matrix_rank(delta, tol=1e-4) == rank
    np.testing.assert_allclose(local @ delta, best, atol=1e-4)


@pytest.mark.parametrize("mu", [None, 1e-3, 100.0])
def test_residual_from_statistics_is_that_of_the_rows(rows, mu):
    local, full, kernel = rows
    delta = np.zeros((D, D)) if mu is None else solved(*rows, mu=mu)
    left = full @ kernel - local @ (kernel + delta)
    assert_close(
        residual(local, full, kernel, delta), np.sum(left**2) / np.sum((full @ kernel) ** 2)
    )


@pytest.mark.parametrize("affine", [False, True])
def test_layers_that_videos_name_are_solved_for(rows, affine):
    """Against rows with a column of ones, where the bias may change too."""
    _, _, kernel = rows
    rng, layers = np.random.default_rng(2), np.array([[2, 0], [1, 1]])
    streams = rng.normal(size=(2, 3, 2, 1, ROWS, D)).astype(np.float32)  # [stream, L, B, N, T, H]
    streams[1] = 0.5 * streams[0] + 0.3 * streams[1] + 0.7
    kernels = np.stack([kernel, 2 * kernel, -kernel]).astype(np.float32)
    of = lambda local, full: absorption.stream_statistics(local, full, affine)
    statistics = jax.vmap(of)(*map(jnp.asarray, streams))
    empty = absorption.empty_statistics(3, 2, width=D, affine=affine)
    shapes = lambda tree: [leaf.shape for leaf in jax.tree.leaves(tree)]
    assert shapes(empty) == shapes(statistics)
    deltas, gains = absorption.solve_layers(
        statistics.local_local, statistics.local_full, jnp.asarray(kernels), layers,
        "trace", 1e-2, None,
    )  # fmt: skip
    for (row, video), layer in np.ndenumerate(layers):
        local, full = streams[:, layer, video, 0].astype(np.float64)
        local = np.concatenate([local, np.ones((ROWS, int(affine)))], axis=1)
        mu = 1e-2 * np.trace(local.T @ local) / (D + affine)
        expected = least_squares(local, full, kernels[layer], mu)
        assert_close(deltas[row, video], expected)
        due = (full - local[:, :D]) @ kernels[layer]
        lowered = np.sum(due**2) - np.sum((due - local @ expected) ** 2)
        np.testing.assert_allclose(gains[row, video], lowered, rtol=1e-5)


def test_scales_of_the_ridge(rows):
    gram = rows[0].T @ rows[0]
    of = lambda ridge: absorption.ridge_of(jnp.asarray(gram, jnp.float32), ridge, 0.1)
    np.testing.assert_allclose(of("trace"), 0.1 * np.trace(gram) / D, rtol=1e-5)
    frobenius = 0.1 * np.linalg.norm(gram) ** 2 / np.trace(gram)
    np.testing.assert_allclose(of("frobenius"), frobenius, rtol=1e-5)


def test_statistics_sum_over_tokens_with_heads_in_order():
    rng = np.random.default_rng(0)
    local, full = rng.normal(size=(2, 2, 3, 5, 4)).astype(np.float32)  # [B, N, T, H]
    actual = absorption.stream_statistics(jnp.asarray(local), jnp.asarray(full))
    for b in range(2):
        one, two = (np.concatenate(list(x[b]), axis=-1).astype(np.float64) for x in (local, full))
        assert_close(actual.local_local[b], one.T @ one)
        assert_close(actual.local_full[b], one.T @ two)
        assert_close(actual.full_full[b], two.T @ two)


def test_smallest_of_each_video_and_of_equals_the_lower():
    scores = np.array([[3.0, 1.0], [1.0, 1.0], [1.0, 1.0], [2.0, np.nan]])
    expected = [[False, True], [True, True], [True, False], [False, False]]
    assert absorption.smallest(scores, 2).tolist() == expected
