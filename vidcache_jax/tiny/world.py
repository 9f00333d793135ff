"""The sprite world: random scenes, drawn frame by frame in closed form.

One or two flat sprites move in front of a panorama, sometimes behind a wall. What moves is
periodic and follows from the frame number alone, so any frame can be drawn at once, at frame
100,000 as exactly as at frame 0. Sprites and the wall live on the screen, hills and landmarks in
a panorama twice as wide that the camera pans over.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vidcache_jax.tiny import paint

MOTIONS = ("drifts left", "drifts right", "bounces", "circles")
CAMERAS = ("still", "pans left", "pans right")

# Phases and rates are integers with this many units to a cycle: they never lose precision.
CYCLE = 2**16


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """Sizes in pixels, speeds in pixels per frame, periods in frames; pairs are (low, high)."""

    size: int = 64
    world_width: int = 128
    frames_per_second: int = 8
    radius: tuple[float, float] = (7.0, 9.5)
    rim: float = 1.6
    drift_speed: tuple[float, float] = (8.0, 8.0)
    drift_y: tuple[float, float] = (14.0, 50.0)
    bob: tuple[float, float] = (0.0, 0.0)
    bounce_speed: tuple[float, float] = (4.0, 4.0)
    orbit: tuple[float, float] = (16.0, 16.0)
    orbit_offset: float = 5.0
    period: tuple[float, float] = (16.0, 16.0)
    horizon: tuple[float, float] = (36.0, 50.0)
    hills: tuple[float, ...] = (5.0, 3.0, 2.0)
    landmark_size: tuple[float, float] = (5.0, 8.0)
    wall_width: tuple[float, float] = (24.0, 28.0)
    wall_margin: float = 4.0
    brick: tuple[float, float] = (12.0, 8.0)
    pan_speed: int = 8
    pair_probability: float = 0.4
    wall_probability: float = 0.3
    pan_probability: float = 0.4


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scene:
    """All there is to know about one video; the prompt tells only part of it.

    `vmap` puts axes ``*scenes`` in front.

    Sprite arrays have two rows, of which `sprite_count` are used. A sprite's coordinate at frame
    t is `centre + swing * wave((phase + rate t) / CYCLE)`, axes (x, y).
    """

    sprite_count: Int[Array, "*scenes"]
    colour: Int[Array, "*scenes 2"]
    shape: Int[Array, "*scenes 2"]
    radius: Float[Array, "*scenes 2"]
    motion: Int[Array, "*scenes 2"]
    centre: Float[Array, "*scenes 2 2"]
    swing: Float[Array, "*scenes 2 2"]
    phase: Int[Array, "*scenes 2 2"]
    rate: Int[Array, "*scenes 2 2"]
    place: Int[Array, "*scenes"]
    horizon: Float[Array, "*scenes"]
    hill_height: Float[Array, "*scenes waves"]
    hill_phase: Float[Array, "*scenes waves"]
    landmark_is_house: Bool[Array, "*scenes 2"]
    landmark_colour: Int[Array, "*scenes 2"]
    landmark_x: Float[Array, "*scenes 2"]
    landmark_size: Float[Array, "*scenes 2"]
    has_wall: Bool[Array, "*scenes"]
    wall_x: Float[Array, "*scenes"]
    wall_width: Float[Array, "*scenes"]
    wall_rgb: Float[Array, "*scenes 3"]
    camera: Int[Array, "*scenes"]


def cycle(phase: Int[Array, "..."], rate: Int[Array, "..."], frame_index: Int[Array, ""]) -> Array:
    """Fraction in [0, 1) of a cycle gone at a frame, exact for every int32 frame index."""
    # Reduced first: |rate| < CYCLE / 2, so the product stays within int32.
    return jnp.mod(phase + rate * jnp.mod(frame_index, CYCLE), CYCLE).astype(jnp.float32) / CYCLE


def _sprite(key: Array, config: WorldConfig) -> dict[str, Array]:
    """Motion and size of one sprite."""
    keys = iter(jax.random.split(key, 12))

    def uniform(bounds, shape=()):
        return jax.random.uniform(next(keys), shape, jnp.float32, *bounds)

    def integer(high, shape=()):
        return jax.random.randint(next(keys), shape, 0, high, jnp.int32)

    half = config.size / 2
    motion, radius = integer(len(MOTIONS)), uniform(config.radius)
    phase = integer(CYCLE, (2,))
    sign = jnp.where(integer(2) == 0, 1.0, -1.0).astype(jnp.float32)
    bounce = jnp.full((2,), half - radius)
    orbit_rate = sign / uniform(config.period)
    drift_rate = uniform(config.drift_speed) / config.world_width
    drift_rate = jnp.where(motion == 0, -drift_rate, drift_rate)
    middle = jnp.full((2,), half, jnp.float32)
    drift_centre = jnp.stack([middle[0], uniform(config.drift_y)])
    drift_swing = jnp.stack([jnp.float32(config.world_width / 2), uniform(config.bob)])
    offset = uniform((-config.orbit_offset, config.orbit_offset), (2,))
    orbit = jnp.full((2,), uniform(config.orbit))
    bounce_rate = uniform(config.bounce_speed, (2,)) / (4.0 * bounce)
    drifts, circles = motion <= 1, motion == 3

    def choose(drift, bouncing, circling):
        return jnp.where(drifts, drift, jnp.where(circles, circling, bouncing))

    cycles = choose(
        jnp.stack([drift_rate, orbit_rate]), bounce_rate, jnp.stack([orbit_rate, orbit_rate])
    )
    # A quarter cycle apart, two sines go round.
    return dict(
        motion=motion,
        radius=radius,
        centre=choose(drift_centre, middle, middle + offset),
        swing=choose(drift_swing, bounce, orbit),
        phase=jnp.where(circles, phase[:1] + jnp.array([CYCLE // 4, 0], jnp.int32), phase),
        rate=jnp.round(cycles * CYCLE).astype(jnp.int32),
    )


def sample_scene(key: Array, config: WorldConfig = WorldConfig()) -> Scene:  # noqa: B008
    """A random scene; two sprites never share a colour."""
    keys = iter(jax.random.split(key, 24))

    def uniform(low, high, shape=()):
        return jax.random.uniform(next(keys), shape, jnp.float32, low, high)

    def integer(low, high, shape=()):
        return jax.random.randint(next(keys), shape, low, high, jnp.int32)

    def chance(probability, shape=()):
        return jax.random.bernoulli(next(keys), probability, shape)

    sprites = jax.vmap(lambda k: _sprite(k, config))(jax.random.split(next(keys), 2))
    first = integer(0, len(paint.COLOURS))
    other = first + integer(1, len(paint.COLOURS))
    waves, width = len(config.hills), config.world_width
    landmark_x = uniform(0, width)
    gap = uniform(0.35 * width, 0.65 * width)
    wall_width = uniform(*config.wall_width)
    tone, wall = uniform(0, 1), jnp.asarray(paint.WALL_RGB)
    wall_x = uniform(config.wall_margin, config.size - config.wall_margin - wall_width)
    return Scene(
        **sprites,
        sprite_count=1 + chance(config.pair_probability).astype(jnp.int32),
        colour=jnp.mod(jnp.stack([first, other]), len(paint.COLOURS)),
        shape=integer(0, len(paint.SHAPES), (2,)),
        place=integer(0, len(paint.PLACES)),
        horizon=uniform(*config.horizon),
        hill_height=uniform(0.3, 1.0, (waves,)) * jnp.array(config.hills, jnp.float32),
        hill_phase=uniform(0, 1, (waves,)),
        landmark_is_house=chance(0.5, (2,)),
        landmark_colour=integer(0, len(paint.LANDMARK_RGB), (2,)),
        landmark_x=jnp.mod(jnp.stack([landmark_x, landmark_x + gap]), width),
        landmark_size=uniform(*config.landmark_size, (2,)),
        has_wall=chance(config.wall_probability),
        wall_x=wall_x,
        wall_width=wall_width,
        wall_rgb=wall[0] + tone * (wall[1] - wall[0]),
        camera=integer(1, len(CAMERAS)) * chance(config.pan_probability).astype(jnp.int32),
    )


def sprite_positions(scene: Scene, frame_index: Int[Array, ""]) -> Float[Array, "2 2"]:
    """Centres (x, y) in pixels of both sprites at one frame."""
    turn = cycle(scene.phase, scene.rate, frame_index)
    saw, sine = 2.0 * turn - 1.0, jnp.sin(2.0 * jnp.pi * turn)
    motion = scene.motion[:, None]
    # Only x drifts; the other axis bobs.
    drift = jnp.where(jnp.array([[True, False]]), saw, sine)
    bounce = 1.0 - 2.0 * jnp.abs(saw)
    wave = jnp.where(motion <= 1, drift, jnp.where(motion == 2, bounce, sine))
    return scene.centre + scene.swing * wave


def _panorama(scene: Scene, u: paint.Plane, y: paint.Plane, config: WorldConfig) -> paint.Image:
    """Sky, hills, ground and landmarks; `u` is the position in the panorama."""
    sky, foot, hill, ground = jnp.asarray(paint.PLACE_RGB)[scene.place]
    height = jnp.clip(y / scene.horizon, 0.0, 1.0)[..., None]
    image = sky[None, None] + height * (foot - sky)[None, None]
    outline = scene.horizon - 3.0
    for wave in range(len(config.hills)):
        angle = (wave + 1.0) * u / config.world_width + scene.hill_phase[wave]
        outline = outline - scene.hill_height[wave] * (1.0 + jnp.sin(2.0 * jnp.pi * angle))
    image = paint.over(image, hill, paint.cover(outline - y))
    image = paint.over(image, ground, paint.cover(scene.horizon - y))
    half = config.world_width / 2
    for i in range(2):
        x = jnp.mod(u - scene.landmark_x[i] + half, config.world_width) - half
        size, up = scene.landmark_size[i], y - scene.horizon - 2.0
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
    centred = left - 0.5 * scene.wall_width
    opacity = paint.cover(jnp.abs(centred) - 0.5 * scene.wall_width)
    return paint.over(image, rgb, opacity * scene.has_wall.astype(jnp.float32))


def _draw(scene: Scene, frame_index: Int[Array, ""], config: WorldConfig) -> paint.Image:
    grid = jnp.arange(config.size, dtype=jnp.float32) + 0.5
    x, y = jnp.meshgrid(grid, grid)
    speed = jnp.array([0, -config.pan_speed, config.pan_speed], jnp.int32)[scene.camera]
    pan = jnp.mod(speed * jnp.mod(frame_index, config.world_width), config.world_width)
    image = _panorama(scene, x + pan.astype(jnp.float32), y, config)
    position = sprite_positions(scene, frame_index)
    for i in range(2):
        shapes = paint.sprite_distances(x - position[i, 0], y - position[i, 1], scene.radius[i])
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
