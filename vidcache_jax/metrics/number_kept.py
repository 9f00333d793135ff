"""Whether a video of the sprite world has as many sprites as its prompt."""

from collections.abc import Mapping

from vidcache_jax.metrics.told import Told
from vidcache_jax.tiny.spotting import Sightings


def number_of_sprites(told: Told, seen: Sightings) -> Mapping[str, float]:
    """``sprite_count``, the mean number of sprites in a frame, and ``number_kept``, 0 to 1.

    ``number_kept`` is the share of frames whose number may be true of the prompt: never more than
    it tells, and at least one if one of them cannot be out of sight (two may hide each other).
    """
    counts = seen.found.sum(axis=(1, 2, 3))
    least = 0 if all(sprite.leaves for sprite in told.sprites) else 1
    kept = (least <= counts) & (counts <= len(told.sprites))
    return {"sprite_count": float(counts.mean()), "number_kept": float(kept.mean())}
