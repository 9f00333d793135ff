"""Whether the background is still the one of the beginning.

A camera that pans comes round to where it was: the panorama is as long as
`world_cells * frames_per_step` frames, so every later background has been seen before. The views of
that first *revolution* are kept; a later frame is compared with the nearest of them, so that a
camera that pans at another pace is not taken for a lost background. A still camera has the same
view all along. Cells in which either frame may show a sprite are left out.
"""

from collections.abc import Mapping

import numpy as np

from vidcache_jax.metrics.gauge import Frames, mean_or_nan
from vidcache_jax.tiny.spotting import Sightings
from vidcache_jax.tiny.world import WorldConfig

KEPT = 0.01
"""Change up to which a background counts as kept. Scenes encoded and decoded by the built-in codec
stay below 0.007 of themselves; other scenes of the same place mostly differ by 0.02 or more."""
POSSIBLE = 0.25
"""Overlap from which a cell may show part of a sprite (half of what counts as found)."""


class BackgroundGauge:
    """``background_change`` and ``background_kept``, of frames after the first revolution.

    ``background_change``: mean absolute difference of RGB, 0 to 1, from the nearest view.
    ``background_kept``: share of frames in which that is at most `KEPT`.
    """

    def __init__(self, config: WorldConfig = WorldConfig()):  # noqa: B008
        self._config = config
        self._revolution = config.world_cells * config.frames_per_step
        self._views: list[np.ndarray] = []
        self._covered: list[np.ndarray] = []

    def update(self, frames: Frames, seen: Sightings) -> Mapping[str, float]:
        covered = seen.overlap.max(axis=1) >= POSSIBLE
        missing = self._revolution - len(self._views)
        self._views += [frame.astype(np.int16) for frame in frames[:missing]]
        self._covered += list(covered[:missing])
        later = range(min(missing, len(frames)), len(frames))
        changes = np.array([self._change(frames[i], covered[i]) for i in later])
        known = changes[~np.isnan(changes)]
        return {
            "background_change": mean_or_nan(known),
            "background_kept": mean_or_nan((known <= KEPT).astype(np.float64)),
        }

    def _change(self, frame: np.ndarray, covered: np.ndarray) -> float:
        count, cell = self._config.view_cells, self._config.cell
        difference = np.abs(np.stack(self._views) - frame)
        # Whole numbers: a sum along rows first is several times as fast as a mean over cells.
        rows = difference.reshape(-1, count, cell, count, 3 * cell).sum(axis=4)
        cells = rows.sum(axis=2) / (255 * 3 * cell**2)
        shown = ~(np.stack(self._covered) | covered)
        sizes = shown.sum(axis=(1, 2))
        means = np.where(shown, cells, 0.0).sum(axis=(1, 2)) / np.maximum(sizes, 1)
        return float(means[sizes > 0].min()) if sizes.any() else float("nan")
