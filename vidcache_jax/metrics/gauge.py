"""What reads a video chunk by chunk and says one thing about each chunk."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8

Frames = UInt8[np.ndarray, "f H W 3"]
ChunkLatents = Float[np.ndarray, "F Y X C"]
FrameScores = Float[np.ndarray, " f"]


@runtime_checkable
class Gauge(Protocol):
    """Measures a video of any length; what it keeps does not grow with the video.

    Chunks come in order and may differ in their number of frames. How a video is cut into chunks
    decides which frames a figure is a mean of, never a frame's own part in it.
    """

    def update(self, frames: Frames, latents: ChunkLatents) -> Mapping[str, float]:
        """The next chunk's figures by name; NaN where there is nothing to measure.

        Args:
          frames: RGB, 0 to 255.
          latents: what they were decoded from.
        """
        ...


def mean_or_nan(values: np.ndarray) -> float:
    """The mean, NaN of nothing."""
    return float(np.mean(values)) if len(values) else float("nan")
