"""An independent account of full and sliding-window caches; shares no code with the package.

Lists of frames instead of slots, one dense softmax instead of merged parts, rotations as complex
numbers, everything in float64, one video at a time.
"""

import typing

import numpy as np

THETA = 10000.0


class Frame(typing.NamedTuple):
    number: int
    k: np.ndarray
    """[heads, tokens of a frame, pairs], complex and un-rotated."""
    v: np.ndarray


class Oracle:
    """Self-Forcing's buffer: sink first, then the latest frames; None = no window."""

    def __init__(self, grid, window_size=None, sink_size=0, relative=False):
        self.grid, self.relative = grid, relative
        self.window_size, self.sink_size = window_size, sink_size
        self.buffer: list[Frame] = []

    def chunk(self, q, k, v, num_frames):
        """(denoise attention, commit attention) of the next chunk, each [heads, tokens, H]."""
        first = self.buffer[-1].number + 1 if self.buffer else 0
        own = [
            Frame(first + i, k_frame, v_frame)
            for i, (k_frame, v_frame) in enumerate(
                zip(np.split(as_complex(k), num_frames, axis=1),
                    np.split(np.asarray(v, np.float64), num_frames, axis=1), strict=True)
            )
        ]  # fmt: skip
        self._make_room(num_frames)
        # Noisy and clean pass see the same frames; here they also have the same keys.
        self.buffer += own
        out = self._attend(as_complex(q), num_frames)
        return out, out

    def _make_room(self, incoming):
        while self.window_size and len(self.buffer) + incoming > self.window_size:
            del self.buffer[self.sink_size]

    def positions(self):
        return [i if self.relative else f.number for i, f in enumerate(self.buffer)]

    def _attend(self, q, num_frames):
        places = self.positions()
        pairs = zip(self.buffer, places, strict=True)
        keys = np.concatenate([self._turn(f.k, [place]) for f, place in pairs], axis=1)
        values = np.concatenate([f.v for f in self.buffer], axis=1)
        q = self._turn(q, places[-num_frames:])
        logits = np.einsum("ntp,nsp->nts", q, keys.conj()).real / np.sqrt(2 * q.shape[-1])
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return np.einsum("nts,nsh->nth", weights / weights.sum(axis=-1, keepdims=True), values)

    def _turn(self, x, frame_places):
        """Turns complex pairs by frame, row and column: the first pairs by frame, and so on."""
        count = x.shape[-1]
        turned = np.empty_like(x)
        token = 0
        for frame in frame_places:
            for row in range(self.grid[0]):
                for column in range(self.grid[1]):
                    start = 0
                    for place, n in ((frame, count - 2 * (count // 3)), (row, count // 3),
                                     (column, count // 3)):  # fmt: skip
                        for i in range(n):
                            angle = place * THETA ** (-i / n)
                            turned[:, token, start + i] = x[:, token, start + i] * np.exp(
                                1j * angle
                            )
                        start += n
                    token += 1
        return turned


def as_complex(x):
    """Adjacent channels are real and imaginary part: [heads, tokens, H] -> [.., H / 2]."""
    x = np.asarray(x, np.float64)
    return x[..., 0::2] + 1j * x[..., 1::2]
