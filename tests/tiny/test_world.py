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
    """A pan of 8 pixels a frame over 128 pixels returns after 16 frames, however late."""
    panning = scene(1, camera=np.int32(2), sprite_count=np.int32(0), has_wall=np.bool_(False))
    early, half, late = frames(panning, 3, 3 + 8, 3 + 16 * 62_500)
    np.testing.assert_allclose(early, late, atol=1e-6)
    assert np.abs(early - half).mean() > 0.01


@pytest.mark.parametrize("motion", range(len(world.MOTIONS)))
def test_far_frames_are_as_exact_as_near_ones(motion):
    """Against Python's integers and float64, at frame 0 and at frame 10 million."""
    made = next(s for s in map(scene, range(100)) if int(s.motion[0]) == motion)
    for index in (0, 10_000_000):
        turn = np.asarray(made.phase[0], np.int64) + np.asarray(made.rate[0], np.int64) * index
        turn = (turn % world.CYCLE) / world.CYCLE
        saw, sine = 2 * turn - 1, np.sin(2 * np.pi * turn)
        bounce = 1 - 2 * np.abs(saw)
        wave = {0: [saw[0], sine[1]], 1: [saw[0], sine[1]], 2: bounce, 3: sine}[motion]
        expected = np.asarray(made.centre[0]) + np.asarray(made.swing[0]) * np.asarray(wave)
        got = positions(made, jnp.asarray([index], jnp.int32))[0, 0]
        np.testing.assert_allclose(got, expected, atol=1e-3)


def test_drifting_sprites_leave_the_view_and_return():
    """Hidden for longer than a chunk of three, back within a training clip of 21 frames."""
    for seed in range(60):
        made = scene(seed)
        if int(made.motion[0]) > 1:
            continue
        x = np.asarray(positions(made, jnp.arange(60, dtype=jnp.int32)))[:, 0, 0]
        radius = float(made.radius[0])
        hidden = (x < -radius) | (x > CONFIG.size + radius)
        runs = [len(run) for run in "".join("h" if h else " " for h in hidden).split()]
        assert 3 < max(runs) < 18


def test_wall_hides_sprites():
    made = scene(4, has_wall=np.bool_(True), sprite_count=np.int32(2))
    left, width = float(made.wall_x), float(made.wall_width)
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
