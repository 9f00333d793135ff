"""From figures of chunks to figures of a video. NaN is a chunk with nothing to measure."""

import numpy as np
from jaxtyping import Float, Int

Series = Float[np.ndarray, " chunks"]
Counts = Int[np.ndarray, " chunks"]
"""Frames of each chunk."""

CLIP_SECONDS = 2.0
"""Length of a clip in VBench-Long for videos of one's own."""


def drift(series: Series) -> Series:
    """Each chunk's figure minus the first chunk's."""
    return series - series[0]


def mean(series: Series, frames: Counts) -> float:
    """Mean over the frames, a chunk's frames counting alike; NaN if nothing was measured."""
    known = ~np.isnan(series)
    return float(np.average(series[known], weights=frames[known])) if known.any() else float("nan")


def first_clip(series: Series, frames: Counts, clip_frames: float) -> float:
    """Mean over the first chunks that together have at least ``clip_frames`` frames."""
    chunks = int(np.searchsorted(np.cumsum(frames), clip_frames)) + 1
    return mean(series[:chunks], frames[:chunks])


def last_clip(series: Series, frames: Counts, clip_frames: float) -> float:
    """Mean over the last chunks that together have at least ``clip_frames`` frames."""
    return first_clip(series[::-1], frames[::-1], clip_frames)


def quality_drift(series: Series, frames: Counts, clip_frames: float) -> float:
    """First clip minus last clip, the papers' delta Q; in the unit of the score.

    Positive where a score that should be high has fallen. The papers take VBench's imaging
    quality for the score (TetherCache, arXiv 2606.13035, sec. 4).
    """
    return first_clip(series, frames, clip_frames) - last_clip(series, frames, clip_frames)
