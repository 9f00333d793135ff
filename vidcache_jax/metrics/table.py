"""All figures: name, unit, what they mean, and how they are read."""

import dataclasses
from collections.abc import Mapping

from vidcache_jax.metrics.flicker import FlickerGauge
from vidcache_jax.metrics.frame_scores import FrameScoreGauge
from vidcache_jax.metrics.gauge import Gauge
from vidcache_jax.metrics.latent_moments import LatentMomentsGauge
from vidcache_jax.metrics.motion import MotionGauge
from vidcache_jax.metrics.sprites import SpriteGauge


@dataclasses.dataclass(frozen=True)
class Metric:
    """One figure of a chunk."""

    title: str
    unit: str
    definition: str
    drifts: bool = False
    """Read as drift, against the first chunk; there is no right value."""


VERSION = 1
"""Raised when a figure comes out differently for the same video: results are then made anew."""

METRICS: Mapping[str, Metric] = {
    "brightness": Metric("Brightness", "luma, 0 to 1", "mean luma of a frame", drifts=True),
    "contrast": Metric(
        "Contrast", "luma, 0 to 0.5", "standard deviation of luma over a frame", drifts=True
    ),
    "saturation": Metric("Saturation", "0 to 1", "mean HSV saturation of a frame", drifts=True),
    "sharpness": Metric(
        "Sharpness", "luma squared", "variance of luma's Laplacian over a frame", drifts=True
    ),
    "latent_mean": Metric(
        "Latent mean", "normalised latents", "mean over a chunk's latents", drifts=True
    ),
    "latent_std": Metric(
        "Latent deviation", "normalised latents", "deviation of a chunk's latents", drifts=True
    ),
    "motion": Metric(
        "Motion", "luma, 0 to 1", "mean absolute change of luma from one frame to the next"
    ),
    "flicker": Metric(
        "Flicker", "luma, 0 to 1", "mean of what changes in one frame and changes back in the next"
    ),
    "told_colours": Metric(
        "Told sprites found", "share", "told colours of which a frame shows a sprite"
    ),
    "told_shapes": Metric("Told shapes kept", "share", "found told sprites that have their shape"),
    "told_place": Metric("Told place kept", "share", "frames that show the told place"),
    "sprite_count": Metric("Sprites in a frame", "sprites", "mean number of sprites found"),
    "number_kept": Metric(
        "Number kept", "share", "frames whose number of sprites may be true of the prompt"
    ),
    "returns": Metric("Returns", "a chunk", "sprites that came back, or others in their place"),
    "colour_kept": Metric("Colour kept on return", "share", "returns in the old colour"),
    "identity_kept": Metric(
        "Identity kept on return", "share", "returns in the old colour and shape"
    ),
    "background_change": Metric(
        "Background change", "RGB, 0 to 1", "difference from the nearest view of the first 2 s"
    ),
    "background_kept": Metric(
        "Background kept", "share", "frames after 2 s whose background has been seen in the first"
    ),
}


def gauges(prompt: str, *, of_sprites: bool) -> tuple[Gauge, ...]:
    """Fresh gauges for one video; ``of_sprites`` adds what is known only of the sprite world.

    Raises:
      ValueError: ``of_sprites``, and the prompt is no sentence of that world.
    """
    any_video = FrameScoreGauge(), LatentMomentsGauge(), MotionGauge(), FlickerGauge()
    return (*any_video, SpriteGauge(prompt)) if of_sprites else any_video
