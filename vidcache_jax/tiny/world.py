"""The sprite world: random scenes, drawn frame by frame in closed form.

One or two flat sprites move in front of a panorama, sometimes behind a wall. What moves is
periodic and follows from the frame number alone, so any frame can be drawn at once, at frame
100,000 as exactly as at frame 0. Sprites and the wall live on the screen, hills and landmarks in
a panorama twice as wide that the camera pans over.

Everything moves by whole cells of 16 pixels, every other frame, and a sprite fills one cell. A
cell is one token of the tiny DiT, so that motion is a token that goes next door: what a model this
small can learn in an hour or two on a CPU. (Sprites that moved by half a token it had not learned
to move after 3,000 steps.)
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vidcache_jax.tiny import paint

MOTIONS = ("drifts left", "drifts right", "bounces", "circles")
CAMERAS = ("still", "pans left", "pans right")
RING = np.array([[1, 0], [1, 1], [0, 1], [-1, 1], [-1, 0], [-1, -1], [0, -1], [1, -1]], np.int32)
"""The cells next to a cell, in the order of a circle."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """Sizes in pixels; a brick is (width, height).

    Attributes:
      cell: what moves, moves by one of these,
      frames_per_step: once in so many frames.
    """

    size: int = 64
    world_width: int = 128
    cell: int = 16
    frames_per_step: int = 2
    frames_per_second: int = 8
    radius: float = 7.4
    rim: float = 1.6
    horizon: float = 40.0
    hills: tuple[float, ...] = (5.0, 3.0)
    landmark_size: float = 7.0
    wall_width: float = 32.0
    brick: tuple[float, float] = (12.0, 8.0)
    pair_probability: float = 0.3
    wall_probability: float = 0.25
    pan_probability: float = 0.3

    @property
    def view_cells(self) -> int:
        """Cells across the screen."""
        return self.size // self.cell

    @property
    def world_cells(self) -> int:
        """Cells across the panorama, and steps a drifting sprite takes to come round."""
        return self.world_width // self.cell


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scene:
    """All there is to know about one video; the prompt tells only part of it.

    `vmap` puts axes ``*scenes`` in front.

    Sprite arrays have two rows, of which `sprite_count` are used; axes (x, y).
    """

    sprite_count: Int[Array, "*scenes"]
    colour: Int[Array, "*scenes 2"]
    shape: Int[Array, "*scenes 2"]
    motion: Int[Array, "*scenes 2"]
    home: Int[Array, "*scenes 2 2"]
    """Cell that a circle goes round, or where a drift begins."""
    phase: Int[Array, "*scenes 2 2"]
    """Steps by which a bounce or a circle is ahead in its period."""
    turn: Int[Array, "*scenes 2"]
    """1 or -1, the sense of a circle."""
    place: Int[Array, "*scenes"]
    hill_height: Float[Array, "*scenes waves"]
    hill_phase: Float[Array, "*scenes waves"]
    landmark_is_house: Bool[Array, "*scenes 2"]
    landmark_colour: Int[Array, "*scenes 2"]
    landmark_x: Float[Array, "*scenes 2"]
    has_wall: Bool[Array, "*scenes"]
    wall_x: Float[Array, "*scenes"]
    wall_rgb: Float[Array, "*scenes 3"]
    camera: Int[Array, "*scenes"]


def sample_scene(key: Array, config: WorldConfig = WorldConfig()) -> Scene:  # noqa: B008
    """A random scene; two sprites never share a colour."""
    keys = iter(jax.random.split(key, 24))

    def uniform(low, high, shape=()):
        return jax.random.uniform(next(keys), shape, jnp.float32, low, high)

    def integer(low, high, shape=()):
        return jax.random.randint(next(keys), shape, low, high, jnp.int32)

    def chance(probability, shape=()):
        return jax.random.bernoulli(next(keys), probability, shape)

    motion, turn = integer(0, len(MOTIONS), (2,)), 2 * integer(0, 2, (2,)) - 1
    view, world = config.view_cells, config.world_cells
    anywhere, inner = integer(0, view, (2, 2)), integer(1, view - 1, (2, 2))
    first = integer(0, len(paint.COLOURS))
    other = first + integer(1, len(paint.COLOURS))
    waves = len(config.hills)
    landmark_cell = integer(0, world)
    gap = integer(3 * world // 8, 5 * world // 8 + 1)
    landmark_cells = jnp.mod(jnp.stack([landmark_cell, landmark_cell + gap]), world)
    wall_cells = round(config.wall_width / config.cell)
    tone, wall = uniform(0, 1), jnp.asarray(paint.WALL_RGB)
    return Scene(
        sprite_count=1 + chance(config.pair_probability).astype(jnp.int32),
        colour=jnp.mod(jnp.stack([first, other]), len(paint.COLOURS)),
        shape=integer(0, len(paint.SHAPES), (2,)),
        motion=motion,
        home=jnp.where(motion[:, None] == 3, inner, anywhere),
        phase=integer(0, 2**16, (2, 2)),
        turn=turn,
        place=integer(0, len(paint.PLACES)),
        hill_height=uniform(0.3, 1.0, (waves,)) * jnp.array(config.hills, jnp.float32),
        hill_phase=uniform(0, 1, (waves,)),
        landmark_is_house=chance(0.5, (2,)),
        landmark_colour=integer(0, len(paint.LANDMARK_RGB), (2,)),
        landmark_x=(landmark_cells.astype(jnp.float32) + 0.5) * config.cell,
        has_wall=chance(config.wall_probability),
        wall_x=integer(0, view - wall_cells + 1).astype(jnp.float32) * config.cell,
        wall_rgb=wall[0] + tone * (wall[1] - wall[0]),
        camera=integer(1, len(CAMERAS)) * chance(config.pan_probability).astype(jnp.int32),
    )


def sprite_positions(
    scene: Scene,
    frame_index: Int[Array, ""],
    config: WorldConfig = WorldConfig(),  # noqa: B008
) -> Float[Array, "2 2"]:
    """Centres (x, y) in pixels of both sprites at one frame."""
    span, lap = config.view_cells - 1, config.world_cells
    # Whole periods taken off first, so that sums stay far inside of int32.
    common = math.lcm(2 * span, len(RING), lap)
    step = jnp.mod(frame_index // config.frames_per_step, common)
    phase = jnp.mod(scene.phase, common)
    motion = scene.motion[:, None]

    sign = jnp.where(scene.motion == 0, -1, 1)
    left_out = (lap - config.view_cells) // 2
    x = jnp.mod(scene.home[:, 0] + left_out + sign * step, lap) - left_out
    drift = jnp.stack([x, scene.home[:, 1]], axis=-1)
    bounce = jnp.abs(span - jnp.mod(phase + step, 2 * span))
    circle = scene.home + jnp.asarray(RING)[jnp.mod(phase[:, 0] + scene.turn * step, len(RING))]

    cells = jnp.where(motion <= 1, drift, jnp.where(motion == 2, bounce, circle))
    return (cells.astype(jnp.float32) + 0.5) * config.cell


def _panorama(scene: Scene, u: paint.Plane, y: paint.Plane, config: WorldConfig) -> paint.Image:
    """Sky, hills, ground and landmarks; `u` is the position in the panorama."""
    sky, foot, hill, ground = jnp.asarray(paint.PLACE_RGB)[scene.place]
    height = jnp.clip(y / config.horizon, 0.0, 1.0)[..., None]
    image = sky[None, None] + height * (foot - sky)[None, None]
    outline = config.horizon - 3.0
    for wave in range(len(config.hills)):
        angle = (wave + 1.0) * u / config.world_width + scene.hill_phase[wave]
        outline = outline - scene.hill_height[wave] * (1.0 + jnp.sin(2.0 * jnp.pi * angle))
    image = paint.over(image, hill, paint.cover(outline - y))
    image = paint.over(image, ground, paint.cover(config.horizon - y))
    half = config.world_width / 2
    for i in range(2):
        x = jnp.mod(u - scene.landmark_x[i] + half, config.world_width) - half
        size, up = jnp.float32(config.landmark_size), y - config.horizon - 2.0
        rgb, house = (
            jnp.asarray(paint.LANDMARK_RGB)[scene.landmark_colour[i]],
            scene.landmark_is_house[i],
        )
        foot = paint.box(x, up + size * 0.7, jnp.where(house, size, size * 0.25), size * 0.7)
        roof = paint.triangle(x, up + size * 1.9, size * 1.4)
        crown = paint.disc(x, up + size * 1.9, size)
        image = paint.over(image, jnp.where(house, rgb, paint.TRUNK_RGB), paint.cover(foot))
        top = jnp.where(house, 0.6 * rgb, rgb)
        image = paint.over(image, top, paint.cover(jnp.where(house, roof, crown)))
    return image


def _wall(scene: Scene, image: paint.Image, x: paint.Plane, y: paint.Plane, config: WorldConfig):
    left = x - scene.wall_x
    width, height = config.brick
    row = jnp.floor(y / height)
    joint = (jnp.mod(y, height) < 1.0) | (jnp.mod(left + 0.5 * width * row, width) < 1.0)
    rgb = scene.wall_rgb[None, None] * jnp.where(joint, 0.65, 1.0)[..., None]
    centred = left - 0.5 * config.wall_width
    opacity = paint.cover(jnp.abs(centred) - 0.5 * config.wall_width)
    return paint.over(image, rgb, opacity * scene.has_wall.astype(jnp.float32))


def _draw(scene: Scene, frame_index: Int[Array, ""], config: WorldConfig) -> paint.Image:
    grid = jnp.arange(config.size, dtype=jnp.float32) + 0.5
    x, y = jnp.meshgrid(grid, grid)
    step = jnp.mod(frame_index // config.frames_per_step, config.world_cells)
    pan = config.cell * jnp.array([0, -1, 1], jnp.int32)[scene.camera] * step
    image = _panorama(scene, x + pan.astype(jnp.float32), y, config)
    position = sprite_positions(scene, frame_index, config)
    radius = jnp.float32(config.radius)
    for i in range(2):
        shapes = paint.sprite_distances(x - position[i, 0], y - position[i, 1], radius)
        distance = shapes[scene.shape[i]]
        rgb, rim = (
            jnp.asarray(paint.COLOUR_RGB)[scene.colour[i]],
            paint.cover(distance + config.rim),
        )
        flat = (0.35 + 0.65 * rim)[..., None] * rgb[None, None]
        present = (scene.sprite_count > i).astype(jnp.float32)
        image = paint.over(image, flat, paint.cover(distance) * present)
    return _wall(scene, image, x, y, config)


def render(
    scene: Scene,
    frame_index: Int[Array, " F"],
    config: WorldConfig = WorldConfig(),  # noqa: B008
) -> Float[Array, "F H W 3"]:
    """Frames of one scene, in [-1, 1], at any non-negative frame numbers in any order."""
    return jax.vmap(lambda t: _draw(scene, t, config))(frame_index) * 2.0 - 1.0
