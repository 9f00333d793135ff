"""The sprite world: deterministic, periodic, and such that memory matters."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidcache_jax.tiny import paint, world

CONFIG = world.WorldConfig()


sample_many = jax.jit(lambda keys: jax.vmap(world.sample_scene)(keys))
SCENES = sample_many(jax.random.split(jax.random.key(0), 400))
draw = jax.jit(world.render)
positions = jax.jit(jax.vmap(world.sprite_positions, in_axes=(None, 0)))


def scene(seed: int = 0, **changes) -> world.Scene:
    made = jax.tree.map(lambda leaf: leaf[seed], SCENES)
    return dataclasses.replace(made, **{k: jnp.asarray(v) for k, v in changes.items()})


def frames(scene: world.Scene, *index: int) -> np.ndarray:
    """All of one length, so that one program draws them."""
    assert len(index) <= 12
    padded = jnp.asarray(index + (0,) * (12 - len(index)), jnp.int32)
    return np.asarray(draw(scene, padded))[: len(index)]


def test_frames_are_images_in_range():
    images = frames(scene(), 0, 1, 2)
    assert images.shape == (3, CONFIG.size, CONFIG.size, 3) and images.dtype == np.float32
    assert images.min() >= -1 and images.max() <= 1 and images.std() > 0.1


def test_any_frame_can_be_drawn_alone():
    together = frames(scene(3), 5, 100, 7)
    for place, index in enumerate((5, 100, 7)):
        np.testing.assert_allclose(together[place], frames(scene(3), index)[0], atol=1e-6)


def test_camera_comes_back():
    """A pan of 16 pixels every other frame over 128 pixels returns after 16 frames, for ever."""
    panning = scene(1, camera=np.int32(2), sprite_count=np.int32(0), has_wall=np.bool_(False))
    early, half, late = frames(panning, 3, 3 + 8, 3 + 16 * 62_500)
    np.testing.assert_allclose(early, late, atol=1e-6)
    assert np.abs(early - half).mean() > 0.01


def cell_by_hand(made: world.Scene, sprite: int, frame: int) -> tuple[int, int]:
    """(column, row) of a sprite with Python's unbounded integers, one rule at a time."""
    step, motion = frame // 2, world.MOTIONS[int(made.motion[sprite])]
    column, row = (int(x) for x in made.home[sprite])
    phase_x, phase_y = (int(x) for x in made.phase[sprite])
    if motion == "drifts left":
        return (column - step + 2) % 8 - 2, row
    if motion == "drifts right":
        return (column + step + 2) % 8 - 2, row
    if motion == "bounces":
        there_and_back = (3, 2, 1, 0, 1, 2)
        return there_and_back[(phase_x + step) % 6], there_and_back[(phase_y + step) % 6]
    turned = (phase_x + int(made.turn[sprite]) * step) % 8
    return column + (1, 1, 0, -1, -1, -1, 0, 1)[turned], row + (0, 1, 1, 1, 0, -1, -1, -1)[turned]


@pytest.mark.parametrize("motion", range(len(world.MOTIONS)))
def test_sprites_move_by_a_cell_every_other_frame_however_late(motion):
    made = next(s for s in map(scene, range(100)) if int(s.motion[0]) == motion)
    index = [*range(40), *range(2**31 - 20, 2**31)]
    got = np.asarray(positions(made, jnp.asarray(index, jnp.int32)))[:, 0]
    expected = [cell_by_hand(made, 0, frame) for frame in index]
    np.testing.assert_array_equal(got, 16 * np.array(expected) + 8)


def test_sprites_begin_in_view_and_drifting_ones_leave_and_return():
    """Hidden for longer than a chunk of three, back within a training clip of 21 frames."""
    for seed in range(60):
        made = scene(seed)
        x = np.asarray(positions(made, jnp.arange(48, dtype=jnp.int32)))[:, 0, 0]
        hidden = (x < 0) | (x > CONFIG.size)
        assert not hidden[0]
        if int(made.motion[0]) <= 1:
            runs = [len(run) for run in "".join("h" if h else " " for h in hidden).split()]
            assert max(runs) == 8
        else:
            assert not hidden.any()


def test_a_sprite_fills_its_cell_and_no_other():
    """So that it is one token of the DiT. (An edge may blur into the next pixel.)"""
    for seed in range(12):
        shown = scene(seed, sprite_count=np.int32(1), has_wall=np.bool_(False))
        without = dataclasses.replace(shown, sprite_count=jnp.zeros((), jnp.int32))
        change = np.abs(frames(shown, 0)[0] - frames(without, 0)[0]).sum(axis=-1)
        column, row = cell_by_hand(shown, 0, 0)
        own = change[16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
        assert own.sum() > 0.995 * change.sum()
        rows, columns = np.nonzero(own > 0.1)
        assert np.ptp(columns) >= 12 and np.ptp(rows) >= 12


def test_wall_hides_sprites():
    made = scene(4, has_wall=np.bool_(True), sprite_count=np.int32(2))
    left, width = float(made.wall_x), CONFIG.wall_width
    columns = slice(int(np.ceil(left)) + 1, int(left + width) - 1)
    images = frames(made, *range(12))[:, :, columns]
    np.testing.assert_allclose(images, np.broadcast_to(images[:1], images.shape), atol=1e-6)


def test_colours_are_told_apart_and_scenes_vary():
    rgb = paint.COLOUR_RGB
    distance = np.linalg.norm(rgb[:, None] - rgb[None], axis=-1) + np.eye(len(rgb))
    assert distance.min() > 0.3
    assert set(np.unique(SCENES.motion)) == set(range(len(world.MOTIONS)))
    assert set(np.unique(SCENES.place)) == set(range(len(paint.PLACES)))
    assert (np.asarray(SCENES.colour[:, 0]) != np.asarray(SCENES.colour[:, 1])).all()
