"""Finds a sprite of a given colour in finished frames: what a video shows, measured.

A frame is compared, cell by cell, with what a sprite of each shape would look like there: how far
the pixels of its colour and the inside of the shape are the same pixels (intersection over union).
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from vidcache_jax.tiny import paint
from vidcache_jax.tiny.world import WorldConfig

NEAR = 0.3
"""Distance in RGB, channels in [0, 1], up to which a pixel may have the colour nearest to it."""
FOUND = 0.5
"""Intersection over union from which a sprite counts as found."""


@dataclasses.dataclass(frozen=True)
class Spotted:
    """The best match of each frame."""

    overlap: Float[np.ndarray, " F"]
    shape: Int[np.ndarray, " F"]
    """Index in `paint.SHAPES`; sure only where sprites are sharp."""
    column: Int[np.ndarray, " F"]
    row: Int[np.ndarray, " F"]

    @property
    def found(self) -> Bool[np.ndarray, " F"]:
        return self.overlap >= FOUND


def spot(
    frames: UInt8[np.ndarray, "F H W 3"],
    colour: str,
    config: WorldConfig = WorldConfig(),  # noqa: B008
) -> Spotted:
    """Where, and in which shape, each frame shows a sprite of ``colour``.

    Raises:
      ValueError: no sprite has this colour.
    """
    if colour not in paint.COLOURS:
        raise ValueError(f"{colour!r} is no colour of a sprite; there are {paint.COLOURS}")
    own = paint.COLOURS.index(colour)
    # In parts: the distances of ten minutes to every colour would take more than 10 GB.
    parts = [frames[first : first + 256] for first in range(0, len(frames), 256)]
    is_near = np.concatenate([_is_near(part, own) for part in parts])
    count, cell = config.view_cells, config.cell
    cells = is_near.reshape(-1, count, cell, count, cell).swapaxes(2, 3)
    inside = _insides(config)
    both = np.einsum("fyxhw,eshw->fyxes", cells.astype(np.float64), inside.astype(np.float64))
    either = cells.sum(axis=(3, 4))[..., None, None] + inside.sum(axis=(2, 3)) - both
    overlap = (both / either).max(axis=3).reshape(len(frames), -1)
    best = overlap.argmax(axis=1)
    row, column, shape = np.unravel_index(best, (count, count, len(paint.SHAPES)))
    return Spotted(overlap.max(axis=1), shape, column, row)


def _is_near(frames: UInt8[np.ndarray, "F H W 3"], own: int) -> Bool[np.ndarray, "F H W"]:
    """Which pixels have a certain colour of the palette."""
    distance = np.linalg.norm(frames[..., None, :] / 255 - _palette(), axis=-1)
    return (distance.argmin(axis=-1) == own) & (distance[..., own] < NEAR)


def _palette() -> Float[np.ndarray, "colours 3"]:
    """Every colour of the world, those of sprites first."""
    houses = np.concatenate([paint.LANDMARK_RGB, 0.6 * paint.LANDMARK_RGB])
    places = paint.PLACE_RGB.reshape(-1, 3)
    return np.concatenate([paint.COLOUR_RGB, houses, paint.TRUNK_RGB[None], paint.WALL_RGB, places])


def _insides(config: WorldConfig) -> Bool[np.ndarray, "sizes shapes cell cell"]:
    """Of each shape, the pixels within its dark rim, at full size and somewhat shrunk."""
    grid = jnp.arange(config.cell, dtype=jnp.float32) + 0.5 - config.cell / 2
    x, y = jnp.meshgrid(grid, grid)
    radii = [jnp.float32(scale * config.radius) for scale in (1.0, 0.92, 0.84)]
    return np.stack([
        np.asarray(paint.sprite_distances(x, y, radius) < -config.rim) for radius in radii
    ])  # fmt: skip
