import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidcache_jax.cache import grab
from vidcache_jax.testing import assert_close

PLACES = 8
select = jax.jit(grab.select, static_argnums=3)


def row(values, dtype=jnp.float32):
    return jnp.asarray([values], dtype)


@st.composite
def pools(draw):
    """(scores, frame numbers, who is a candidate, size); equal scores are likely."""
    scores = draw(st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75]), min_size=8, max_size=8))
    numbers = draw(st.permutations(range(0, 80, 10)))
    candidate = draw(st.lists(st.booleans(), min_size=8, max_size=8))
    return scores, numbers, candidate, draw(st.integers(0, 9))


@settings(max_examples=60)
@given(pool=pools(), order=st.permutations(range(PLACES)))
def test_the_best_are_selected_wherever_they_lie(pool, order):
    scores, numbers, candidate, size = pool
    ranked = sorted((-s, n) for s, n, c in zip(scores, numbers, candidate, strict=True) if c)
    best = {number for _, number in ranked[:size]}
    for places in (range(PLACES), order):
        shuffled = [[values[i] for i in places] for values in (scores, numbers, candidate)]
        kept = select(row(shuffled[0]), row(shuffled[1], jnp.int32), row(shuffled[2], bool), size)
        assert {n for n, k in zip(shuffled[1], kept[0].tolist(), strict=True) if k} == best


def test_no_more_are_selected_than_fit_when_scores_are_computed_in_the_same_program():
    """XLA once compared a score with another rounding of itself, and lost a frame."""

    @jax.jit
    def kept(importance, diversity, numbers):
        score = importance + 0.35 * diversity
        return grab.select(score, numbers, jnp.ones_like(score, bool), 5)

    rng = np.random.default_rng(0)
    for _ in range(50):
        importance, diversity = jnp.asarray(rng.random((2, 1, 12)), jnp.float32)
        chosen = kept(importance, diversity, jnp.arange(12, dtype=jnp.int32)[None])
        assert int(chosen.sum()) == 5


def test_attention_mass_is_the_mean_over_all_pairs_of_tokens():
    """Against every single logit; slots that do not count hold NaN."""
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((1, 3, 10, 6)), rng.standard_normal((1, 3, 4, 5, 6))
    logits = np.einsum("bnqh,bnkth->bk", q, k) / (3 * 10 * 5 * np.sqrt(6)) / 0.02
    candidate = np.array([[True, False, True, True]])
    weights = np.where(candidate, np.exp(logits), 0)
    mean_key = np.where(candidate[:, None, :, None], k.mean(axis=3), np.nan)
    mass = grab.attention_mass(
        jnp.asarray(q.mean(axis=2), jnp.float32), jnp.asarray(mean_key, jnp.float32),
        jnp.asarray(candidate), 0.02,
    )  # fmt: skip
    assert_close(mass, weights / weights.sum())
    assert mass[0, 1] == 0


def test_diversity_by_hand():
    """Frames 4, 5 and 12: sigma = 4.5; nearness counts as much as the near frame's mass."""
    importance, frames = row([0.5, 0.3, 0.9, 0.2]), row([4, 5, 40, 12], jnp.int32)
    candidate = row([True, True, False, True], bool)
    near = lambda distance, mass: 1 - np.exp(-distance / 4.5) * mass
    expected = [near(1, 0.3), near(1, 0.5), min(near(8, 0.5), near(7, 0.3))]
    diversity = grab.temporal_diversity(importance, frames, candidate)
    assert_close(diversity[0, jnp.asarray([0, 1, 3])], np.array(expected))


@pytest.mark.parametrize("number", [0, 2**31 - 2])
def test_a_lone_candidate_is_as_diverse_as_can_be(number):
    frames = row([number, -1], jnp.int32)
    diversity = grab.temporal_diversity(row([1.0, 0.0]), frames, row([True, False], bool))
    assert diversity[0, 0] == 1.0
