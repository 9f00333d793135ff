"""Motion and flicker: of nothing, of a fade, of what alternates; wherever chunks are cut."""

import numpy as np
import pytest

from tests.metrics.planted import greys, in_chunks
from vidcache_jax.metrics.flicker import FlickerGauge
from vidcache_jax.metrics.motion import MotionGauge

RANDOM = np.random.default_rng(1).integers(0, 256, (12, 5, 4, 3), dtype=np.uint8)
GAUGES = {"motion": MotionGauge, "flicker": FlickerGauge}


def whole(name: str, video: np.ndarray) -> float:
    return float(in_chunks(GAUGES[name](), video, [len(video)])[name][0])


@pytest.mark.parametrize("name", GAUGES)
def test_a_static_video_has_none(name):
    assert whole(name, np.repeat(RANDOM[:1], 9, axis=0)) == 0


def test_a_fade_moves_and_does_not_flicker():
    video = greys(*range(10, 100, 5))
    assert whole("motion", video) == pytest.approx(5 / 255)
    assert whole("flicker", video) == 0


def test_what_alternates_flickers_by_all_its_change():
    video = greys(*[100, 110] * 6)
    assert whole("motion", video) == pytest.approx(10 / 255)
    assert whole("flicker", video) == pytest.approx(10 / 255)


def test_one_frame_that_stands_out_in_a_quarter_of_the_picture():
    video = greys(*[50] * 5)
    video[2, :2, :2] = 250
    assert whole("motion", video) == pytest.approx(2 * (200 / 255) / 4 / 4)
    assert whole("flicker", video) == pytest.approx((200 / 255) / 4 / 3)


def test_an_edge_that_passes_does_not_flicker():
    video = np.zeros((8, 4, 8, 3), np.uint8)
    for t in range(8):
        video[t, :, :t] = 255
    assert whole("flicker", video) == 0
    assert whole("motion", video) == pytest.approx(1 / 8)


@pytest.mark.parametrize("name", GAUGES)
def test_frames_count_the_same_however_chunks_are_cut(name):
    """Sums over chunks, each weighted by the frames it could judge."""
    late = {"motion": 1, "flicker": 2}[name]
    sizes = [1, 1, 3, 4, 3]
    series = in_chunks(GAUGES[name](), RANDOM, sizes)[name]
    assert np.isnan(series[:late]).all() and not np.isnan(series[late:]).any()
    judged = np.maximum(np.cumsum(sizes) - late, 0)
    weights = np.diff(judged, prepend=0)
    mean = np.nansum(series * weights) / weights.sum()
    assert mean == pytest.approx(whole(name, RANDOM))


def test_flicker_by_loops():
    y = RANDOM.astype(np.float64) @ [0.2126, 0.7152, 0.0722] / 255
    values = []
    for t in range(1, len(y) - 1):
        for pixel in np.ndindex(y[t].shape):
            a, b = y[t][pixel] - y[t - 1][pixel], y[t + 1][pixel] - y[t][pixel]
            values.append(min(abs(a), abs(b)) if a * b < 0 else 0)
    assert whole("flicker", RANDOM) == pytest.approx(np.mean(values))
