"""The flow-matching schedule, against published values and the reference's table of sigmas."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidcache_jax.config import RolloutConfig
from vidcache_jax.sampling.schedule import rollout_timesteps, warp


def reference_table(shift):
    """Self-Forcing's scheduler: sigma_i = 1 - i/1000, shifted; a step takes entry 1000 - step."""
    sigma = 1 - np.arange(1000) / 1000
    return np.append(1000 * shift * sigma / (1 + (shift - 1) * sigma), 0.0)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ((1000, 750, 500, 250), (1000, 937.5, 833.333333, 625)),
        ((1000, 800, 600, 400, 200), (1000, 952.380952, 882.352941, 769.230769, 555.555556)),
    ],
)
def test_published_steps(steps, expected):
    np.testing.assert_allclose(warp(steps, 5.0), expected, rtol=1e-8)
    timesteps = rollout_timesteps(RolloutConfig(denoise_timesteps=steps))
    np.testing.assert_allclose(timesteps, expected, rtol=1e-8)


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0, 12.0, 0.5])
def test_every_step_of_the_reference_table(shift):
    steps = np.arange(1001)
    np.testing.assert_allclose(warp(steps, shift), reference_table(shift)[1000 - steps], atol=1e-9)


def test_is_float64_whatever_goes_in():
    assert warp([1000, 1], 5.0).dtype == np.float64
    assert warp(np.array([1000, 1], np.int32), 5).dtype == np.float64
    assert rollout_timesteps(RolloutConfig()).dtype == np.float64


def test_shift_one_changes_nothing():
    np.testing.assert_allclose(warp([1000, 617, 3], 1.0), [1000, 617, 3])


def test_shift_of_the_configuration_is_used():
    timesteps = rollout_timesteps(RolloutConfig(denoise_timesteps=(500,), timestep_shift=3.0))
    np.testing.assert_allclose(timesteps, [750])


@given(
    steps=st.lists(st.integers(1, 1000), min_size=2, max_size=6, unique=True),
    shift=st.floats(0.1, 20),
)
def test_ends_stay_and_order_is_kept(steps, shift):
    steps = sorted(steps, reverse=True)
    warped = warp(steps, shift)
    assert (np.diff(warped) < 0).all() and warped.min() > 0 and warped.max() <= 1000 + 1e-9
    np.testing.assert_allclose(warp([1000, 0], shift), [1000, 0], atol=1e-9)
    # More shift means more time spent in noise.
    assert (warp(steps, shift * 1.5) >= warped - 1e-9).all()
