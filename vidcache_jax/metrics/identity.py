"""Whether a sprite that was out of sight comes back as the sprite it was.

What memory is for, measured. A colour that is seen in `CONFIRM` frames running is a sprite. A
sprite that is then not seen for `ABSENCE` frames or more is *missing*, and the next colour that
is confirmed and was not there is its return:

    the missing colour itself            colour kept; identity kept if the shape is the same too
    another colour                       neither is kept
    a colour, though nothing is missing  a new sprite, which is no return

A sprite that changes its colour in sight is not missing long enough and is no return either; that
the told colour is lost shows in ``told_colours``. The shape is the one seen in most frames
of a stay, on return in the confirming frames. What is kept does not grow with the video: eight
colours, a few numbers each.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from vidcache_jax.metrics.gauge import mean_or_nan
from vidcache_jax.tiny import paint
from vidcache_jax.tiny.spotting import Sightings

CONFIRM = 2
"""Frames: sprites of the world move every other frame, a passing artefact does not last."""
ABSENCE = 4
"""Frames, half a second: what a sprite needs at least to pass behind the wall."""


@dataclasses.dataclass
class _Track:
    """One colour."""

    is_known: bool = False
    gone: int = 0
    """Frames since it was seen."""
    run: int = 0
    """Frames running in which it has been seen, before it is known."""
    shapes: np.ndarray = dataclasses.field(
        default_factory=lambda: np.zeros(len(paint.SHAPES), np.int64)
    )
    missing_shape: int | None = None
    """Not None: it is missing, and had this shape."""


class IdentityGauge:
    """``returns``, their number in a chunk, and the shares ``colour_kept`` and ``identity_kept``.

    The shares are NaN in chunks without a return.
    """

    def __init__(self):
        self._tracks = [_Track() for _ in paint.COLOURS]

    def update(self, seen: Sightings) -> Mapping[str, float]:
        count = len(seen.overlap)
        flat = seen.overlap.reshape(count, len(self._tracks), -1)
        best = flat.argmax(axis=2)[..., None]
        shape = np.take_along_axis(seen.shape.reshape(flat.shape), best, axis=2)[..., 0]
        found = seen.found.max(axis=(2, 3))
        returns = [kept for f in range(count) for kept in self._next(found[f], shape[f])]
        kept = np.array(returns, np.float64).reshape(-1, 2)
        return {
            "returns": float(len(kept)),
            "colour_kept": mean_or_nan(kept[:, 0]),
            "identity_kept": mean_or_nan(kept[:, 1]),
        }

    def _next(self, found: np.ndarray, shape: np.ndarray) -> list[tuple[bool, bool]]:
        """One frame; (colour kept, identity kept) of each return that it confirms."""
        arrived = []
        for track, is_found, s in zip(self._tracks, found.tolist(), shape.tolist(), strict=True):
            if is_found:
                track.gone, track.run = 0, track.run + 1
                track.shapes[s] += 1
                if not track.is_known and track.run >= CONFIRM:
                    track.is_known = True
                    arrived.append(track)
                continue
            track.run, track.gone = 0, track.gone + 1
            if not track.is_known:
                track.shapes[:] = 0
            elif track.gone >= ABSENCE:
                track.is_known, track.missing_shape = False, int(track.shapes.argmax())
                track.shapes[:] = 0
        return [kept for track in arrived if (kept := self._arrival(track)) is not None]

    def _arrival(self, track: _Track) -> tuple[bool, bool] | None:
        if track.missing_shape is not None:
            same = track.missing_shape == int(track.shapes.argmax())
            track.missing_shape = None
            return True, same
        missing = [other for other in self._tracks if other.missing_shape is not None]
        if missing:
            max(missing, key=lambda other: other.gone).missing_shape = None
            return False, False
        # Changed in sight: what it was must not count as missing later.
        for other in self._tracks:
            if other.is_known and other.gone and other is not track:
                other.is_known = False
                other.shapes[:] = 0
                break
        return None
