"""The contact sheet: which frames, where on the sheet, what of a stream that stops early."""

import numpy as np
import pytest
from PIL import Image

from vidcache_jax.sampling.contact_sheet import ContactSheet

FPS = 8


def flat_frames(first: int, last: int) -> np.ndarray:
    """Frames first ... last - 1, 8 x 12 pixels, each all in the grey of its number."""
    greys = np.arange(first, last, dtype=np.uint8)
    return np.tile(greys[:, None, None, None], (1, 8, 12, 3))


def tile_greys(path) -> list[int]:
    """The greys found in 8 x 12 areas of one colour, row by row, background apart."""
    pixels = np.asarray(Image.open(path))[:, :, 0].astype(int)
    found = []
    for y in range(0, pixels.shape[0] - 7):
        for x in range(0, pixels.shape[1] - 11):
            area = pixels[y : y + 8, x : x + 12]
            if area.min() == area.max() != 24:
                found.append(int(area[0, 0]))
    return found


def test_frames_at_even_times_row_by_row(tmp_path):
    with ContactSheet(tmp_path / "a.png", total_frames=201, fps=FPS, columns=3, rows=2) as sheet:
        for first in range(0, 201, 7):
            sheet.write(flat_frames(first, min(first + 7, 201)))
    assert sheet.frame_numbers == (0, 40, 80, 120, 160, 200)
    assert tile_greys(sheet.path) == [0, 40, 80, 120, 160, 200]


def test_chunks_do_not_matter(tmp_path):
    for name, step in (("one.png", 1), ("all.png", 50)):
        with ContactSheet(tmp_path / name, total_frames=50, fps=FPS) as sheet:
            for first in range(0, 50, step):
                sheet.write(flat_frames(first, first + step))
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "all.png").read_bytes()


def test_labels_tell_the_time(tmp_path):
    """Sheets of the same frames differ below the tiles if, and only if, their times differ."""
    for name, fps in (("slow.png", 1), ("fast.png", 2), ("again.png", 2)):
        with ContactSheet(tmp_path / name, total_frames=10, fps=fps, columns=2, rows=1) as sheet:
            sheet.write(flat_frames(0, 10))
    slow, fast = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("slow", "fast"))
    below = 4 + 8
    np.testing.assert_array_equal(slow[:below], fast[:below])
    assert (slow[below:] != fast[below:]).any()
    assert (tmp_path / "fast.png").read_bytes() == (tmp_path / "again.png").read_bytes()


def test_scale(tmp_path):
    with ContactSheet(tmp_path / "a.png", total_frames=1, fps=FPS, scale=3) as sheet:
        sheet.write(flat_frames(7, 8))
    pixels = np.asarray(Image.open(sheet.path))
    assert (pixels[4 : 4 + 24, 4 : 4 + 36] == 7).all()


def test_short_video_fills_fewer_tiles(tmp_path):
    with ContactSheet(tmp_path / "a.png", total_frames=2, fps=FPS, columns=6) as sheet:
        sheet.write(flat_frames(50, 52))
    assert tile_greys(sheet.path) == [50, 51]


def test_only_shown_frames_are_kept(tmp_path):
    sheet = ContactSheet(tmp_path / "a.png", total_frames=10**6, fps=FPS, columns=2, rows=1)
    frames = flat_frames(0, 100)
    sheet.write(frames)
    assert len(sheet._tiles) == 1 and not np.shares_memory(sheet._tiles[0], frames)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_interrupted_stream_shows_what_came(tmp_path, error):
    with pytest.raises(error):
        with ContactSheet(tmp_path / "a.png", total_frames=101, fps=FPS, columns=2) as sheet:
            sheet.write(flat_frames(0, 60))
            raise error
    assert tile_greys(sheet.path) == [0, 33]
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_no_frames_leave_nothing(tmp_path):
    with ContactSheet(tmp_path / "a.png", total_frames=10, fps=FPS):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["total_frames", "fps", "columns", "rows", "scale"])
def test_impossible_numbers(tmp_path, name):
    numbers = {"total_frames": 10, "fps": FPS, name: 0}
    with pytest.raises(ValueError, match=f"{name}=0 must be positive"):
        ContactSheet(tmp_path / "a.png", **numbers)


def test_impossible_place(tmp_path):
    with pytest.raises(ValueError, match="must end in .png"):
        ContactSheet(tmp_path / "a.gif", total_frames=10, fps=FPS)
    with pytest.raises(FileNotFoundError, match="no directory"):
        ContactSheet(tmp_path / "missing" / "a.png", total_frames=10, fps=FPS)


def test_frames_must_be_pictures(tmp_path):
    sheet = ContactSheet(tmp_path / "a.png", total_frames=10, fps=FPS)
    with pytest.raises(ValueError, match="must be uint8"):
        sheet.write(np.zeros((1, 8, 8, 3), np.float32))
    sheet.write(flat_frames(0, 1))
    with pytest.raises(ValueError, match="one size"):
        sheet.write(np.zeros((1, 8, 8, 3), np.uint8))
