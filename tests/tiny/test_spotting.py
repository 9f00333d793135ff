import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidcache_jax.tiny import paint, world
from vidcache_jax.tiny.spotting import spot

draw = jax.jit(world.render)
INDEX = jnp.arange(12, dtype=jnp.int32)


def film(**changes):
    """Frames of a lone circling sprite at night, uint8, and its scene."""
    fixed = dict(sprite_count=1, motion=[3, 3], home=[[1, 2], [1, 2]], place=2, camera=0)
    arrays = {k: jnp.asarray(v, jnp.int32) for k, v in {**fixed, **changes}.items()}
    scene = dataclasses.replace(
        world.sample_scene(jax.random.key(0)), has_wall=jnp.asarray(False), **arrays
    )
    return np.asarray((draw(scene, INDEX) + 1) * 127.5).astype(np.uint8), scene


@pytest.mark.parametrize("colour", range(len(paint.COLOURS)))
def test_a_drawn_sprite_is_found_with_its_shape_where_it_is(colour):
    shape = colour % len(paint.SHAPES)
    frames, scene = film(colour=[colour, colour], shape=[shape, shape])
    spotted = spot(frames, paint.COLOURS[colour])
    assert spotted.found.all() and (spotted.shape == shape).all()
    places = jax.vmap(world.sprite_positions, in_axes=(None, 0))(scene, INDEX)[:, 0]
    np.testing.assert_array_equal(np.stack([spotted.column, spotted.row], 1), places // 16)


def test_no_other_colour_is_found():
    frames, _ = film(colour=[0, 0], shape=[1, 1])
    for colour in paint.COLOURS[1:]:
        assert not spot(frames, colour).found.any(), colour


def test_an_unknown_colour_is_named():
    with pytest.raises(ValueError, match="'mauve' is no colour of a sprite; there are .*red"):
        spot(np.zeros((1, 64, 64, 3), np.uint8), "mauve")
