"""A picture of a video: frames at even times, each with its time below it."""

import os

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vidcache_jax.sampling import output_file
from vidcache_jax.sampling.frame_sink import FrameSink, check_frames, enlarge

_GAP = 4
_LABEL_HEIGHT = 14
_BACKGROUND = (24, 24, 24)
_INK = (230, 230, 230)


class ContactSheet(FrameSink):
    """Keeps `columns * rows` frames of a stream, first and last included, and writes a PNG.

    Used like `VideoWriter`: `write` frames as they come, in a `with` block. Of a stream that stops
    early the sheet shows what came; with no frames no file is left. Memory: the kept frames.

    Attributes:
      path: the absolute path of the PNG; it appears, whole, at the end.
      frame_numbers: which frames of the video are shown.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        total_frames: int,
        fps: float,
        columns: int = 6,
        rows: int = 2,
        scale: int = 1,
    ):
        """Checks the place and chooses the frames.

        Args:
          path: where the picture goes, ending in .png.
          total_frames: length of the video in (pixel) frames.
          fps: frames per second, for the labels.
          columns, rows: of the sheet; a shorter video fills fewer.
          scale: integer factor by which each pixel is repeated.

        Raises:
          ValueError: a number is not positive, or the name does not end in .png.
          OSError: (or the fitting subclass) the file cannot be written there.
        """
        numbers = {"total_frames": total_frames, "fps": fps, "columns": columns, "rows": rows,
                   "scale": scale}  # fmt: skip
        for name, number in numbers.items():
            if not number > 0:
                raise ValueError(f"{name}={number} must be positive")
        self._fps, self._columns, self._scale = fps, columns, scale
        times = np.linspace(0, total_frames - 1, columns * rows)
        self.frame_numbers = tuple(sorted({round(time) for time in times.tolist()}))
        self._frame_shape: tuple[int, ...] | None = None
        self._tiles: list[np.ndarray] = []
        self._num_seen = 0
        self._is_closed = False
        self.path, partial = output_file.reserve(path, ".png")
        # Only the check is wanted now: the picture is drawn in one go at the end.
        output_file.discard(partial)

    def write(self, frames: np.ndarray) -> None:
        """Looks at the next frames [F, Y, X, 3], uint8 RGB, and keeps those to be shown."""
        frames = np.asarray(frames)
        self._frame_shape = check_frames(frames, self._frame_shape)
        for number in self.frame_numbers[len(self._tiles) :]:
            if number >= self._num_seen + len(frames):
                break
            # A copy: a view would keep the whole chunk alive.
            self._tiles.append(frames[number - self._num_seen].copy())
        self._num_seen += len(frames)

    def close(self) -> None:
        """Writes the picture; does nothing the second time.

        Raises:
          OSError: the picture does not fit or cannot be moved to `path`.
        """
        if self._is_closed:
            return
        self._is_closed = True
        if not self._tiles:
            return
        _, partial = output_file.reserve(self.path, ".png")
        try:
            self._draw().save(partial, format="PNG")
        except OSError as error:
            output_file.discard(partial)
            raise output_file.cannot_write(self.path, error) from error
        output_file.publish(partial, self.path)

    def _draw(self) -> Image.Image:
        height, width = (self._scale * side for side in self._tiles[0].shape[:2])
        columns = min(self._columns, len(self._tiles))
        rows = -(-len(self._tiles) // columns)
        size = (
            columns * (width + _GAP) + _GAP,
            rows * (height + _GAP + _LABEL_HEIGHT) + _GAP,
        )
        sheet = Image.new("RGB", size, _BACKGROUND)
        draw = ImageDraw.Draw(sheet)
        font = ImageFont.load_default_imagefont()
        for place, (number, tile) in enumerate(zip(self.frame_numbers, self._tiles, strict=False)):
            row, column = divmod(place, columns)
            x = _GAP + column * (width + _GAP)
            y = _GAP + row * (height + _GAP + _LABEL_HEIGHT)
            sheet.paste(Image.fromarray(enlarge(tile, self._scale)), (x, y))
            draw.text((x, y + height + 2), f"{number / self._fps:.1f} s", fill=_INK, font=font)
        return sheet
