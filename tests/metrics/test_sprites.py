"""The sprite world's truths, on films that the world draws: kept, lost, and mixed up on purpose."""

from typing import Any

import numpy as np
import pytest

from tests.metrics.planted import draw, film, in_chunks, scene
from vidcache_jax.metrics.background import BackgroundGauge
from vidcache_jax.metrics.prompt_kept import places
from vidcache_jax.metrics.sprites import SpriteGauge
from vidcache_jax.metrics.table import METRICS, gauges
from vidcache_jax.metrics.told import told
from vidcache_jax.tiny import paint
from vidcache_jax.tiny.spotting import sightings

RED, BLUE, CIRCLE, SQUARE = 0, 5, 0, 1
# Drifts right from the left edge: four columns of two frames in view, eight frames out of view.
DRIFT: dict[str, Any] = dict(motion=[1, 1], home=[[0, 1], [0, 1]])
BOUNCE: dict[str, Any] = dict(motion=[2, 2], phase=[[0, 1], [0, 1]])
CIRCLING: dict[str, Any] = dict(motion=[3, 3], home=[[1, 1], [2, 2]], phase=[[0, 0], [4, 0]])
SIZES = [3] * 16


def figures(prompt: str, video: np.ndarray) -> dict[str, float]:
    """Means over chunks, those with nothing to measure left out; `returns` is summed."""
    series = in_chunks(SpriteGauge(prompt), video, SIZES)
    return {
        name: float(np.nansum(values) if name == "returns" else np.nanmean(values))
        for name, values in series.items()
        if not np.isnan(values).all()
    }


def sprite(colour: int, shape: int, **how) -> np.ndarray:
    return film(colour=[colour, colour], shape=[shape, shape], **how)


def test_what_a_prompt_tells():
    said = told("a red circle drifts left and a blue sprite bounces behind a wall at sea")
    red, blue = said.sprites
    assert (red.colour, red.shape, red.leaves) == (RED, CIRCLE, True)
    assert (blue.colour, blue.shape, blue.leaves) == (BLUE, None, True)
    assert said.place == paint.PLACES.index("sea")
    (square,) = told("a square circles").sprites
    assert (square.colour, square.shape, square.leaves) == (None, SQUARE, False)
    assert told("a square circles").place is None


def test_a_sprite_that_comes_back_as_it_was():
    found = figures("a red circle drifts right in the meadow", sprite(RED, CIRCLE, **DRIFT))
    assert found["returns"] == 2  # 48 frames are three laps
    assert found["colour_kept"] == found["identity_kept"] == 1
    assert found["told_colours"] == pytest.approx(0.5)
    assert found["told_shapes"] == found["told_place"] == found["number_kept"] == 1
    assert found["sprite_count"] == pytest.approx(0.5)
    assert found["background_change"] == 0 and found["background_kept"] == 1


@pytest.mark.parametrize(
    ("colour", "shape", "kept"),
    [(BLUE, CIRCLE, (0, 0)), (RED, SQUARE, (1, 0)), (BLUE, SQUARE, (0, 0))],
)
def test_a_sprite_that_comes_back_as_another(colour, shape, kept):
    """Exchanged while it is out of view: at frame 16 a lap begins."""
    before, after = sprite(RED, CIRCLE, **DRIFT), sprite(colour, shape, **DRIFT)
    video = np.concatenate([before[:16], after[16:]])
    series = in_chunks(SpriteGauge("a red circle drifts right in the meadow"), video, SIZES)
    returned = ~np.isnan(series["colour_kept"])
    assert np.flatnonzero(returned).tolist() == [17 // 3, 33 // 3]
    first, second = np.flatnonzero(returned)
    assert (series["colour_kept"][first], series["identity_kept"][first]) == kept
    assert series["identity_kept"][second] == 1  # from then on it is that other one
    assert series["told_colours"][:5].mean() == pytest.approx(8 / 15)
    assert (series["told_colours"][6:].max() == 0) == (colour == BLUE)


def test_a_change_in_sight_is_no_return_but_breaks_the_prompt():
    red, blue = (sprite(colour, CIRCLE, **BOUNCE) for colour in (RED, BLUE))
    video = np.concatenate([red[:24], blue[24:]])
    found = figures("a red circle bounces in the meadow", video)
    assert found["returns"] == 0 and "colour_kept" not in found
    assert found["told_colours"] == pytest.approx(0.5)


def test_a_sprite_too_many_and_one_too_few():
    """A second sprite comes after 24 frames, and nothing is left after 36."""
    one = sprite(RED, CIRCLE, **CIRCLING)
    two = film(colour=[RED, BLUE], shape=[CIRCLE, SQUARE], sprite_count=2, **CIRCLING)
    none = film(sprite_count=0)
    video = np.concatenate([one[:24], two[24:36], none[36:]])
    series = in_chunks(SpriteGauge("a red circle circles in the meadow"), video, SIZES)
    np.testing.assert_array_equal(series["number_kept"], np.repeat([1.0, 0, 0], [8, 4, 4]))
    np.testing.assert_array_equal(series["sprite_count"], np.repeat([1.0, 2, 0], [8, 4, 4]))
    told_both = SpriteGauge("a red circle circles and a blue square circles in the meadow")
    both = in_chunks(told_both, video, SIZES)
    np.testing.assert_array_equal(both["number_kept"], np.repeat([1.0, 1, 0], [8, 4, 4]))
    np.testing.assert_allclose(both["told_colours"], np.repeat([0.5, 1, 0], [8, 4, 4]))


def test_nothing_told_is_nothing_measured():
    found = figures("a sprite circles", sprite(RED, CIRCLE, **CIRCLING))
    assert not {"told_colours", "told_shapes", "told_place"} & found.keys()


@pytest.mark.parametrize("place", range(len(paint.PLACES)))
def test_places_are_told_apart(place):
    made = scene(1, place=place, camera=1, has_wall=True)
    assert (places(draw(made)) == place).all()


@pytest.mark.parametrize("camera", [0, 1, 2])
def test_a_background_comes_round_and_another_is_told_from_it(camera):
    def background(video: np.ndarray) -> dict[str, np.ndarray]:
        gauge = BackgroundGauge()
        rows = [gauge.update(part, sightings(part)) for part in np.split(video, 16)]
        return {name: np.array([row[name] for row in rows]) for name in rows[0]}

    # While the camera pans, scenes of one place have some views in common (bare hills).
    other_place = 1 if camera else 0
    first = film(0, camera=camera, **BOUNCE)
    other = film(1, camera=camera, place=other_place, **BOUNCE)
    same = background(first)
    assert np.isnan(same["background_change"][:5]).all()  # the first 16 frames are the views
    assert (same["background_change"][5:] == 0).all() and (same["background_kept"][5:] == 1).all()
    changed = background(np.concatenate([first[:24], other[24:]]))
    np.testing.assert_array_equal(changed["background_kept"][5:], np.repeat([1.0, 0], [3, 8]))
    # A darker picture of the same place, by 10 of 255.
    darker = background(np.concatenate([first[:24], first[24:] - np.minimum(first[24:], 10)]))
    np.testing.assert_allclose(darker["background_change"][8:], 10 / 255, rtol=0.2)


def test_every_figure_is_in_the_table():
    video, latents = film()[:3], np.zeros((3, 1, 1, 1), np.float32)
    made: dict[str, float] = {}
    for gauge in gauges("a sprite circles", of_sprites=True):
        figures = gauge.update(video, latents)
        assert not made.keys() & figures.keys()
        made |= figures
    assert made.keys() == METRICS.keys()
    assert len(gauges("no sprite at all", of_sprites=False)) == 4
    with pytest.raises(ValueError, match="names no sprite|unknown words"):
        gauges("no sprite at all", of_sprites=True)
