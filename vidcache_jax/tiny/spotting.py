"""Finds sprites in finished frames: what a video shows, measured.

A frame is compared, cell by cell, with what a sprite of each shape would look like there: how far
the pixels of its colour and the inside of the shape are the same pixels (intersection over union).
"""

import dataclasses
import functools

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


@dataclasses.dataclass(frozen=True)
class Sightings:
    """The best match of each colour in each cell."""

    overlap: Float[np.ndarray, "F colours rows columns"]
    shape: Int[np.ndarray, "F colours rows columns"]

    @property
    def found(self) -> Bool[np.ndarray, "F colours rows columns"]:
        return self.overlap >= FOUND


def sightings(
    frames: UInt8[np.ndarray, "F H W 3"],
    config: WorldConfig = WorldConfig(),  # noqa: B008
) -> Sightings:
    """How far each cell of each frame shows a sprite of each colour of `paint.COLOURS`."""
    # In parts: the pixels of ten minutes, by colour, would take more than 10 GB.
    starts = range(0, max(1, len(frames)), 256)
    parts = [_sightings(frames[start : start + 256], config) for start in starts]
    return Sightings(
        np.concatenate([part.overlap for part in parts]),
        np.concatenate([part.shape for part in parts]),
    )


def _sightings(frames: UInt8[np.ndarray, "F H W 3"], config: WorldConfig) -> Sightings:
    palette = _palette().astype(np.float32)
    # |x - p|^2 without |x|^2, which is the same for all: one product of matrices.
    pixels = frames.reshape(-1, 3) / np.float32(255)
    nearest = (np.sum(palette**2, axis=-1) - 2 * pixels @ palette.T).argmin(axis=-1)
    is_near = np.linalg.norm(pixels - palette[nearest], axis=-1) < NEAR
    colour = np.where(is_near, nearest, len(palette)).reshape(frames.shape[:3])
    count, cell = config.view_cells, config.cell
    cells = colour.reshape(-1, count, cell, count, cell).swapaxes(2, 3)
    own = np.arange(len(paint.COLOURS)).reshape(-1, 1, 1, 1, 1)
    is_own = (cells[:, None] == own).reshape(len(frames), len(own), count, count, cell * cell)
    inside = _insides(config)
    masks = inside.reshape(-1, cell * cell).astype(np.float32)
    both = (is_own.astype(np.float32) @ masks.T).reshape(*is_own.shape[:-1], *inside.shape[:2])
    either = is_own.sum(axis=-1)[..., None, None] + inside.sum(axis=(2, 3)) - both
    overlap = (both / either).max(axis=-2)
    return Sightings(overlap.max(axis=-1), overlap.argmax(axis=-1))


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
    every = sightings(frames, config)
    own = paint.COLOURS.index(colour)
    overlap, shape = (x[:, own].reshape(len(frames), -1) for x in (every.overlap, every.shape))
    frame, best = np.arange(len(frames)), overlap.argmax(axis=1)
    row, column = np.divmod(best, config.view_cells)
    return Spotted(overlap[frame, best], shape[frame, best], column, row)


def _palette() -> Float[np.ndarray, "colours 3"]:
    """Every colour of the world, those of sprites first."""
    houses = np.concatenate([paint.LANDMARK_RGB, 0.6 * paint.LANDMARK_RGB])
    places = paint.PLACE_RGB.reshape(-1, 3)
    return np.concatenate([paint.COLOUR_RGB, houses, paint.TRUNK_RGB[None], paint.WALL_RGB, places])


@functools.cache
def _insides(config: WorldConfig) -> Bool[np.ndarray, "sizes shapes cell cell"]:
    """Of each shape, the pixels within its dark rim, at full size and somewhat shrunk."""
    grid = jnp.arange(config.cell, dtype=jnp.float32) + 0.5 - config.cell / 2
    x, y = jnp.meshgrid(grid, grid)
    radii = [jnp.float32(scale * config.radius) for scale in (1.0, 0.92, 0.84)]
    return np.stack([
        np.asarray(paint.sprite_distances(x, y, radius) < -config.rim) for radius in radii
    ])  # fmt: skip
