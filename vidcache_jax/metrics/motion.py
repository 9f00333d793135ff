"""How much a video moves: the change from frame to frame."""

from collections.abc import Mapping

import numpy as np

from vidcache_jax.metrics.frame_scores import luma
from vidcache_jax.metrics.gauge import ChunkLatents, Frames, mean_or_nan


class MotionGauge:
    """``motion``, the mean over pixels of |luma_t - luma_{t-1}|, 0 to 1.

    No optical flow: everything that changes counts, a fade too. A frame is compared with the one
    before it, in whichever chunk that lies; the video's first frame has none and is left out.
    """

    def __init__(self):
        self._last: np.ndarray | None = None

    def update(self, frames: Frames, latents: ChunkLatents) -> Mapping[str, float]:
        y = luma(frames)
        if self._last is not None:
            y = np.concatenate([self._last, y])
        self._last = y[-1:]
        return {"motion": mean_or_nan(np.abs(np.diff(y, axis=0)).mean(axis=(1, 2)))}
