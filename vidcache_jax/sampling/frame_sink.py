"""What takes frames one chunk at a time and makes a file of them: a video, a contact sheet."""

import abc
from pathlib import Path

import numpy as np


class FrameSink(abc.ABC):
    """Takes frames with `write`, makes its file in `close`; a `with` block closes it.

    However the block ends, Ctrl-C and errors included, `close` makes the best of what was
    written. An error that ended the block goes on; a failure of `close` is then added to its notes.
    """

    path: Path
    """Absolute path of the file."""

    @abc.abstractmethod
    def write(self, frames: np.ndarray) -> None:
        """Takes the next frames [F, Y, X, 3], uint8 RGB; Y and X never change."""

    @abc.abstractmethod
    def close(self) -> None:
        """Finishes the file; does nothing the second time."""

    def __enter__(self):
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        try:
            self.close()
        except Exception as close_error:
            if error is None:
                raise
            # The first error is the cause; this one must neither hide it nor get lost.
            error.add_note(str(close_error))


def check_frames(frames: np.ndarray, frame_shape: tuple[int, ...] | None) -> tuple[int, ...]:
    """Checks frames against the shape [Y, X, 3] of those before (None: first) and returns it.

    Raises:
      ValueError: not uint8 [F, Y, X, 3], or of another size than before.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(
            "frames must be uint8 [frames, height, width, 3], "
            f"not {frames.dtype} {list(frames.shape)}"
        )
    if frame_shape is not None and frame_shape != frames.shape[1:]:
        raise ValueError(
            f"frames of {frames.shape[1]} x {frames.shape[2]} pixels after frames of "
            f"{frame_shape[0]} x {frame_shape[1]}; all must have one size"
        )
    return frames.shape[1:]


def enlarge(pixels: np.ndarray, scale: int) -> np.ndarray:
    """Repeats each pixel of one frame [Y, X, 3] `scale` times in both directions."""
    return pixels.repeat(scale, axis=0).repeat(scale, axis=1)
