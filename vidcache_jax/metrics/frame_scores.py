"""What a single frame looks like: brightness, contrast, saturation, sharpness.

Channels are taken as they are stored (gamma-encoded), 0 to 1. A chunk's figure is the mean over its
frames; its *drift* is that minus the first chunk's (`series.drift`).
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from vidcache_jax.metrics.gauge import ChunkLatents, Frames, FrameScores

LUMA = np.array([0.2126, 0.7152, 0.0722])
"""Weights of red, green and blue (Rec. ITU-R BT.709)."""

Luma = Float[np.ndarray, "f H W"]


def luma(frames: Frames) -> Luma:
    """0.2126 R + 0.7152 G + 0.0722 B of every pixel, 0 to 1."""
    return frames @ (LUMA / 255)


def brightness(frames: Frames) -> FrameScores:
    """Mean luma, 0 (black) to 1 (white)."""
    return luma(frames).mean(axis=(1, 2))


def contrast(frames: Frames) -> FrameScores:
    """Standard deviation of luma over the pixels (RMS contrast), 0 to 0.5."""
    return luma(frames).std(axis=(1, 2))


def saturation(frames: Frames) -> FrameScores:
    """Mean of HSV's saturation (max - min) / max over the pixels, 0 (grey) to 1; black has 0."""
    # NumPy reduces an axis of three slowly.
    red, green, blue = np.moveaxis(frames, -1, 0)
    greatest = np.maximum(np.maximum(red, green), blue)
    spread = greatest - np.minimum(np.minimum(red, green), blue)
    return np.mean(spread / np.maximum(greatest, 1), axis=(1, 2))


def sharpness(frames: Frames) -> FrameScores:
    """Variance over the inner pixels of luma's Laplacian (4 neighbours minus 4 times the pixel).

    In squared luma; blur lowers it, noise raises it.
    """
    y = luma(frames)
    around = y[:, :-2, 1:-1] + y[:, 2:, 1:-1] + y[:, 1:-1, :-2] + y[:, 1:-1, 2:]
    return np.var(around - 4 * y[:, 1:-1, 1:-1], axis=(1, 2))


SCORES = {score.__name__: score for score in (brightness, contrast, saturation, sharpness)}


class FrameScoreGauge:
    """The mean of each of `SCORES` over a chunk's frames."""

    def update(self, frames: Frames, latents: ChunkLatents) -> Mapping[str, float]:
        return {name: float(score(frames).mean()) for name, score in SCORES.items()}
