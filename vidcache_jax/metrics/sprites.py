"""The sprite world's truths, from one look at each chunk."""

from collections.abc import Mapping

from vidcache_jax.metrics.background import BackgroundGauge
from vidcache_jax.metrics.gauge import ChunkLatents, Frames
from vidcache_jax.metrics.identity import IdentityGauge
from vidcache_jax.metrics.number_kept import number_of_sprites
from vidcache_jax.metrics.prompt_kept import told_place_found, told_sprites_found
from vidcache_jax.metrics.told import told
from vidcache_jax.tiny.spotting import sightings


class SpriteGauge:
    """Prompt, number, identity and background kept, of a video of the built-in model.

    Raises:
      ValueError: the prompt is no sentence of the sprite world.
    """

    def __init__(self, prompt: str):
        self._told = told(prompt)
        self._identity = IdentityGauge()
        self._background = BackgroundGauge()

    def update(self, frames: Frames, latents: ChunkLatents) -> Mapping[str, float]:
        seen = sightings(frames)
        return {
            **told_sprites_found(self._told, seen),
            **told_place_found(self._told, frames),
            **number_of_sprites(self._told, seen),
            **self._identity.update(seen),
            **self._background.update(frames, seen),
        }
