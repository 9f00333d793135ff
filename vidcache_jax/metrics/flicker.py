"""Temporal flicker: what changes in one frame and changes back in the next."""

from collections.abc import Mapping

import numpy as np

from vidcache_jax.metrics.frame_scores import luma
from vidcache_jax.metrics.gauge import ChunkLatents, Frames, mean_or_nan


class FlickerGauge:
    """``flicker``, the mean over pixels of how far luma returns after a change, 0 to 1.

    With a = luma_t - luma_{t-1} and b = luma_{t+1} - luma_t a pixel has min(|a|, |b|) if a and b
    have opposite signs, and 0 otherwise. So a fade or an edge that passes has none, and a pixel
    that alternates has all of its change. (VBench's temporal flickering is the change from frame to
    frame, of videos chosen to be static: `motion` is that.) Frame t counts in the chunk of frame
    t + 1, in which it becomes known.
    """

    def __init__(self):
        self._last: np.ndarray | None = None
        """The latest two frames of the chunks before, or as many as there are."""

    def update(self, frames: Frames, latents: ChunkLatents) -> Mapping[str, float]:
        y = luma(frames)
        if self._last is not None:
            y = np.concatenate([self._last, y])
        self._last = y[-2:]
        change = np.diff(y, axis=0)
        there, back = change[:-1], change[1:]
        returned = np.where(there * back < 0, np.minimum(np.abs(there), np.abs(back)), 0.0)
        return {"flicker": mean_or_nan(returned.mean(axis=(1, 2)))}
