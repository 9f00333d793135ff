import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidcache_jax.cache import moments as m
from vidcache_jax.cache.tame import CODE_TAU, PAPER_TAU, align
from vidcache_jax.testing import assert_close, same_bits

TOKENS = 6


@pytest.fixture(scope="module")
def frames():
    """[video, head, frame, token, channel]; channels far from zero, as keys have them."""
    x = np.random.default_rng(0).standard_normal((2, 3, 4, TOKENS, 5)) * [1, 2, 0.1, 3, 0.5]
    return x + [0, 100, 50, -30, 1]


def flat(frames):
    return jnp.asarray(frames.reshape(*frames.shape[:2], -1, frames.shape[-1]), jnp.float32)


def test_pooled_moments_are_those_of_all_tokens_together(frames):
    kept = m.frame_moments(flat(frames), 4)
    members = np.array([[True, False, True, True], [False, False, True, False]])
    spoilt = jax.tree.map(
        lambda x: jnp.where(jnp.asarray(members)[:, None, :, None], x, jnp.nan), kept
    )
    pool = m.pooled(spoilt, jnp.asarray(members))
    for video in range(2):
        tokens = frames[video][:, members[video]].reshape(3, -1, 5)
        assert_close(pool.mean[video, :, 0], tokens.mean(axis=1))
        np.testing.assert_allclose(pool.variance[video, :, 0], tokens.var(axis=1), rtol=1e-3)


def test_moments_of_nothing_are_zero(frames):
    pool = m.pooled(m.frame_moments(flat(frames), 4), jnp.zeros((2, 4), bool))
    assert not pool.mean.any() and not pool.variance.any()


@pytest.mark.parametrize("tau", [1.0, PAPER_TAU, CODE_TAU])
def test_alignment_moves_mean_and_deviation_by_tau(frames, tau):
    """With tau = 1 a frame has the trusted mean and deviation in every head and channel."""
    edited, trusted = frames[:, :, 2:], frames[:, :, :2].reshape(2, 3, -1, 5)
    x = flat(edited)
    pool = m.frame_moments(flat(frames[:, :, :2]), 1)
    aligned = np.asarray(align(x, m.frame_moments(x, 2), pool, tau), np.float64)
    aligned = aligned.reshape(edited.shape)
    for statistic in (np.mean, np.std):
        own, goal = statistic(edited, axis=3), statistic(trusted, axis=2)[:, :, None]
        np.testing.assert_allclose(
            statistic(aligned, axis=3), (1 - tau) * own + tau * goal, rtol=2e-4, atol=2e-4
        )


def test_without_strength_nothing_changes_a_bit(frames):
    x = flat(frames).astype(jnp.bfloat16)
    own = m.frame_moments(x, 4)
    assert same_bits(align(x, own, m.pooled(own, jnp.ones((2, 4), bool)), 0.0), x)


def test_a_constant_frame_stays_finite():
    x = jnp.full((1, 1, TOKENS, 2), 3.0)
    own, pool = m.frame_moments(x, 1), m.frame_moments(x + 1, 1)
    assert_close(align(x, own, pool, 1.0), np.full((1, 1, TOKENS, 2), 4.0))
