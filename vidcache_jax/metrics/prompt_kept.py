"""Whether a video of the sprite world shows what its prompt says."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Int

from vidcache_jax.metrics.gauge import Frames
from vidcache_jax.metrics.told import Told
from vidcache_jax.tiny import paint
from vidcache_jax.tiny.spotting import Sightings

NEAR_PLACE = 0.2
"""Distance in RGB, channels in [0, 1], up to which a pixel tells of a sky or a ground."""


def told_sprites_found(told: Told, seen: Sightings) -> Mapping[str, float]:
    """``told_colours`` and ``told_shapes``, shares 0 to 1.

    ``told_colours``: of the told colours, those of which a sprite is found, mean over frames.
    ``told_shapes``: of the found sprites of told colour and told shape, those that have the shape.
    A sprite that drifts or passes a wall is out of sight for some of the frames even in the world
    itself, so told_colours compares videos of one prompt; it has no target of 1.
    """
    colours = [sprite.colour for sprite in told.sprites if sprite.colour is not None]
    found = seen.found.max(axis=(2, 3))
    with_shape = [
        (sprite.colour, sprite.shape)
        for sprite in told.sprites
        if sprite.colour is not None and sprite.shape is not None
    ]
    right: list[bool] = []
    for colour, shape in with_shape:
        overlap = seen.overlap[:, colour].reshape(len(found), -1)
        best = np.arange(len(found)), overlap.argmax(axis=1)
        shapes = seen.shape[:, colour].reshape(len(found), -1)[best]
        right += (shapes == shape)[found[:, colour]].tolist()
    return {
        "told_colours": float(found[:, colours].mean()) if colours else float("nan"),
        "told_shapes": float(np.mean(right)) if right else float("nan"),
    }


def places(frames: Frames) -> Int[np.ndarray, " f"]:
    """The place of each frame, an index in `paint.PLACES`; -1 where nothing tells.

    Pixels of the top row vote for the place with the nearest sky, those of the bottom row for the
    one with the nearest ground, if it is nearer than `NEAR_PLACE`.
    """
    votes = np.zeros((len(frames), len(paint.PLACES)))
    for row, reference in ((0, paint.PLACE_RGB[:, 0]), (-1, paint.PLACE_RGB[:, 3])):
        distance = np.linalg.norm(frames[:, row, :, None] / 255 - reference, axis=-1)
        near = distance.min(axis=-1) < NEAR_PLACE
        nearest = distance.argmin(axis=-1)
        votes += np.stack([(near & (nearest == i)).sum(axis=1) for i in range(len(reference))], 1)
    return np.where(votes.any(axis=1), votes.argmax(axis=1), -1)


def told_place_found(told: Told, frames: Frames) -> Mapping[str, float]:
    """``told_place``: share of frames that show the told place, 0 to 1."""
    if told.place is None:
        return {"told_place": float("nan")}
    return {"told_place": float(np.mean(places(frames) == told.place))}
