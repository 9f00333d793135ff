"""All policies in one video, and in one picture, each under its name."""

import contextlib
import itertools
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from PIL import Image, ImageDraw, ImageFont

from vidcache_jax.sampling import output_file
from vidcache_jax.sampling.writer import VideoWriter

MAX_COLUMNS = 4
_LINE = 14
_GAP = 4
_BACKGROUND = (24, 24, 24)
_INK = (230, 230, 230)


def write_video(videos: Mapping[str, Path], path: Path, *, fps: float, title: str) -> None:
    """Videos by label, at most four in a row; each is decoded and encoded once more.

    Raises:
      OSError: the file cannot be written there.
    """
    with contextlib.ExitStack() as files:
        streams = [_frames(files.enter_context(av.open(str(each)))) for each in videos.values()]
        first = [next(stream) for stream in streams]
        width = max(frame.shape[1] for frame in first)
        captions = [np.asarray(_caption(label, width)) for label in videos]
        writer = files.enter_context(VideoWriter(path, fps=fps, title=title))
        for frames in itertools.chain([first], zip(*streams, strict=True)):
            tiles = [np.concatenate(pair) for pair in zip(captions, frames, strict=True)]
            writer.write(_grid(tiles)[None])


def write_picture(sheets: Mapping[str, Path], path: Path) -> None:
    """Contact sheets by label, one below the other, so that times line up.

    Raises:
      OSError: the file cannot be written there.
    """
    rows: list[Image.Image] = []
    for label, sheet in sheets.items():
        with Image.open(sheet) as picture:
            rows += [_caption(label, picture.width), picture.convert("RGB")]
    size = (max(row.width for row in rows), sum(row.height for row in rows))
    whole = Image.new("RGB", size, _BACKGROUND)
    top = 0
    for row in rows:
        whole.paste(row, (0, top))
        top += row.height
    path, partial = output_file.reserve(path, ".png")
    try:
        whole.save(partial, format="PNG", optimize=True)
    except OSError as error:
        output_file.discard(partial)
        raise output_file.cannot_write(path, error) from error
    output_file.publish(partial, path)


def _frames(container: InputContainer) -> Iterator[np.ndarray]:
    for frame in container.decode(video=0):
        yield frame.to_ndarray(format="rgb24")


def _caption(label: str, width: int) -> Image.Image:
    """The policy's name, and its options on a second line."""
    picture = Image.new("RGB", (width, 2 * _LINE), _BACKGROUND)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default_imagefont()
    for line, text in enumerate(label.partition(":")[::2]):
        # The font has Latin-1 alone; what it lacks, in a path say, becomes a question mark.
        drawable = text.encode("latin-1", "replace").decode("latin-1")
        draw.text((_GAP, line * _LINE + 1), drawable, fill=_INK, font=font)
    return picture


def _grid(tiles: list[np.ndarray]) -> np.ndarray:
    """Tiles of one size in rows, with gaps, padded to even sides as video needs."""
    columns = min(MAX_COLUMNS, len(tiles))
    rows = math.ceil(len(tiles) / columns)
    height, width, _ = tiles[0].shape
    across, down = columns * (width + _GAP) - _GAP, rows * (height + _GAP) - _GAP
    grid = np.full((down + down % 2, across + across % 2, 3), _BACKGROUND, np.uint8)
    for place, tile in enumerate(tiles):
        row, column = divmod(place, columns)
        top, left = row * (height + _GAP), column * (width + _GAP)
        grid[top : top + height, left : left + width] = tile
    return grid
