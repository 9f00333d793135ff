"""Frame scores against loops over pixels in float64, and on frames whose scores are plain."""

import numpy as np
import pytest

from tests.metrics.planted import NO_LATENTS, greys, in_chunks
from vidcache_jax.metrics.frame_scores import SCORES, FrameScoreGauge
from vidcache_jax.metrics.series import drift

RANDOM = np.random.default_rng(0).integers(0, 256, (3, 6, 5, 3), dtype=np.uint8)


def by_loops(frame: np.ndarray) -> dict[str, float]:
    height, width, _ = frame.shape
    y, saturations = np.zeros((height, width)), []
    for i in range(height):
        for j in range(width):
            r, g, b = (int(channel) / 255 for channel in frame[i, j])
            y[i, j] = 0.2126 * r + 0.7152 * g + 0.0722 * b
            saturations.append(0 if max(r, g, b) == 0 else 1 - min(r, g, b) / max(r, g, b))
    laplacian = [
        y[i - 1, j] + y[i + 1, j] + y[i, j - 1] + y[i, j + 1] - 4 * y[i, j]
        for i in range(1, height - 1)
        for j in range(1, width - 1)
    ]
    return {
        "brightness": sum(y.flat) / y.size,
        "contrast": float(np.sqrt(np.sum((y - y.mean()) ** 2) / y.size)),
        "saturation": sum(saturations) / len(saturations),
        "sharpness": float(np.var(laplacian)),
    }


def test_scores_are_those_of_loops_over_pixels():
    expected = [by_loops(frame) for frame in RANDOM]
    for name, score in SCORES.items():
        np.testing.assert_allclose(score(RANDOM), [e[name] for e in expected], rtol=1e-12)


def test_plain_frames():
    red = np.zeros((1, 4, 4, 3), np.uint8)
    red[..., 0] = 255
    assert SCORES["brightness"](red) == pytest.approx(0.2126)
    assert SCORES["saturation"](red) == pytest.approx(1)
    assert SCORES["brightness"](greys(255)) == pytest.approx(1)
    for name in ("contrast", "saturation", "sharpness"):
        np.testing.assert_allclose(SCORES[name](greys(0, 130, 255)), 0, atol=1e-12)
    halves = greys(0)
    halves[:, :2] = 255
    assert SCORES["contrast"](halves) == pytest.approx(0.5)


def test_a_brightness_ramp_is_the_drift():
    """One level a frame, chunks of three: each chunk is 3/255 brighter than the one before."""
    series = in_chunks(FrameScoreGauge(), greys(*range(100, 130)), [3] * 10)
    np.testing.assert_allclose(drift(series["brightness"]), 3 / 255 * np.arange(10), atol=1e-12)
    np.testing.assert_allclose(drift(series["saturation"]), 0, atol=1e-12)


def test_a_colour_change_at_second_10_is_found_at_second_10():
    """Grey, at 8 frames a second, until it turns red after 80 frames; chunks of four."""
    video = greys(*[120] * 160)
    video[80:, ..., 1:] = 0
    saturation = drift(in_chunks(FrameScoreGauge(), video, [4] * 40)["saturation"])
    seconds = np.arange(40) * 4 / 8
    assert seconds[np.argmax(saturation > 0.5)] == 10
    np.testing.assert_allclose(saturation, np.where(seconds < 10, 0, 1), atol=1e-12)


def test_a_chunk_is_the_mean_of_its_frames():
    figures = FrameScoreGauge().update(RANDOM, NO_LATENTS)
    for name, score in SCORES.items():
        assert figures[name] == pytest.approx(np.mean(score(RANDOM)))
