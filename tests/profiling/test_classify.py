import numpy as np
import pytest

from vidcache_jax.profiling.classify import classify, stability


def shares(*heads):
    """[1 layer, heads, 3] of (sink, current)."""
    return np.array([[(sink, 1 - sink - current, current) for sink, current in heads]])


@pytest.mark.parametrize(
    ("heads", "roles"),
    [
        # The anchor is taken first: of the largest current shares, 0.9 and 0.8, one is left.
        ([(0.1, 0.9), (0.05, 0.8), (0.0, 0.7), (0.0, 0.1)], [1, 0, 2, 2]),
        ([(0.0, 0.9), (0.0, 0.9), (0.3, 0.1), (0.2, 0.1)], [0, 2, 1, 2]),
        # Of equals, the earlier head.
        ([(0.1, 0.5)] * 4, [1, 0, 2, 2]),
    ],
)
def test_anchors_first_then_local_heads(heads, roles):
    assert classify(shares(*heads), 0.25, 0.25).tolist() == [roles]


def test_the_papers_counts():
    random = np.random.default_rng(0).dirichlet([1, 1, 1], (30, 12))
    assert np.bincount(classify(random).ravel()).tolist() == [72, 90, 198]


@pytest.mark.parametrize(("alpha", "tau", "counts"), [(0, 0, [0, 0, 4]), (0.5, 0.5, [2, 2, 0])])
def test_the_ends_of_the_percentiles(alpha, tau, counts):
    roles = classify(shares((0.1, 0.9), (0.5, 0.1), (0.2, 0.3), (0.3, 0.3)), alpha, tau)
    assert np.bincount(roles.ravel(), minlength=3).tolist() == counts


@pytest.mark.parametrize(("alpha", "tau"), [(0.6, 0.5), (-0.1, 0.5), (0.5, -0.1)])
def test_impossible_percentiles_are_refused(alpha, tau):
    with pytest.raises(ValueError, match="shares of all heads"):
        classify(shares((0.1, 0.9)), alpha, tau)


def test_stability_is_the_intersection_over_the_mean():
    runs = [np.array([row]) for row in ([0, 0, 1, 2], [0, 2, 1, 2], [0, 0, 1, 2])]
    # Local: head 0 in all runs, 5 / 3 on average. Memory: head 3, 4 / 3 on average.
    expected = {"local": 3 / 5, "anchor": 1.0, "memory": 3 / 4}
    assert stability(runs) == pytest.approx(expected)
    assert stability([np.zeros((1, 2), np.int32)] * 2) == {"local": 1, "anchor": 1, "memory": 1}
