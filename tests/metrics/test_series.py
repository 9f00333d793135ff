"""Latent moments, and figures of a video from figures of its chunks."""

import numpy as np
import pytest

from tests.metrics.planted import greys
from vidcache_jax.metrics import series
from vidcache_jax.metrics.latent_moments import LatentMomentsGauge

NAN = float("nan")


def test_latent_moments():
    rng = np.random.default_rng(0)
    latents = rng.normal(0.3, 2, (3, 4, 5, 6)).astype(np.float32)
    figures = LatentMomentsGauge().update(greys(1), latents)
    flat = [float(value) for value in latents.flat]
    mean = sum(flat) / len(flat)
    assert figures["latent_mean"] == pytest.approx(mean)
    variance = sum((value - mean) ** 2 for value in flat) / len(flat)
    assert figures["latent_std"] == pytest.approx(variance**0.5)


def test_a_mean_is_over_frames_and_skips_what_was_not_measured():
    values, frames = np.array([NAN, 1.0, 4.0]), np.array([9, 9, 3])
    assert series.mean(values, frames) == pytest.approx((9 * 1 + 3 * 4) / 12)
    assert np.isnan(series.mean(values[:1], frames[:1]))


def test_quality_drift_is_the_first_clip_minus_the_last():
    """Scores of ten chunks of three frames; a clip of 8 frames is three chunks."""
    scores = np.array([70.0, 71, 72, 60, 50, 40, 30, 20, 11, 2])
    frames = np.full(10, 3)
    assert series.first_clip(scores, frames, 8) == pytest.approx(71)
    assert series.last_clip(scores, frames, 8) == pytest.approx(11)
    assert series.quality_drift(scores, frames, 8) == pytest.approx(60)
    assert series.quality_drift(-scores, frames, 8) == pytest.approx(-60)
    assert series.quality_drift(scores, frames, 9) == pytest.approx(60)
    assert series.quality_drift(scores, frames, 1000) == 0
