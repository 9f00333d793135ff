"""Videos whose figures are known: flat frames of given greys, and films of the sprite world."""

import dataclasses
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from vidcache_jax.metrics.gauge import Gauge
from vidcache_jax.tiny import world

NO_LATENTS = np.zeros((1, 1, 1, 1), np.float32)
FILM_FRAMES = 48

_sample = jax.jit(lambda seed: world.sample_scene(jax.random.key(seed)))
_draw = jax.jit(world.render)


def greys(*levels: int, size: int = 4) -> np.ndarray:
    """One flat grey frame per level."""
    return np.array(levels, np.uint8)[:, None, None, None] * np.ones((size, size, 3), np.uint8)


def in_chunks(gauge: Gauge, video: np.ndarray, sizes: Iterable[int]) -> dict[str, np.ndarray]:
    """The series of each figure of a video cut into chunks of these sizes."""
    rows: list[Mapping[str, float]] = []
    start = 0
    for size in sizes:
        rows.append(gauge.update(video[start : start + size], NO_LATENTS))
        start += size
    assert start == len(video)
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def film(seed: int = 0, **changes) -> np.ndarray:
    """48 frames of one sprite in the meadow, no wall, still camera, unless changed."""
    plain = dict(sprite_count=1, place=0, camera=0, has_wall=False)
    return draw(scene(seed, **{**plain, **changes}))


def scene(seed: int = 0, **changes) -> world.Scene:
    made = _sample(seed)
    return dataclasses.replace(
        made,
        **{name: jnp.asarray(value, getattr(made, name).dtype) for name, value in changes.items()},
    )


def draw(made: world.Scene) -> np.ndarray:
    frames = _draw(made, jnp.arange(FILM_FRAMES, dtype=jnp.int32))
    return np.asarray((frames + 1) * 127.5).round().astype(np.uint8)
