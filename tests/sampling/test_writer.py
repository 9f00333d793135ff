"""The mp4 writer: what plays, when, and after which accident."""

import itertools
import os
import resource
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path

import av
import numpy as np
import pytest

from vidcache_jax.sampling import mp4, output_file
from vidcache_jax.sampling.writer import VideoWriter

FPS = 8
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def numbered_frames(first: int, last: int, size: int = 32) -> np.ndarray:
    """Frames first ... last - 1: noise below, and above a grey of 6 times the number."""
    frames = [
        np.random.default_rng(number).integers(0, 255, (size, size, 3), np.uint8)
        for number in range(first, last)
    ]
    for number, frame in enumerate(frames, first):
        frame[: size // 2] = 6 * number
    return np.stack(frames)


def played(path: Path) -> list[int]:
    """The numbers of the frames that a player gets to show."""
    with av.open(path) as container:
        shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return [round(float(frame[: len(frame) // 4].mean()) / 6) for frame in shown]


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@contextmanager
def largest_file(size: int):
    """The operating system refuses to let a file grow beyond `size` bytes, as a full disk does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_video_is_what_was_written(tmp_path, codec):
    with VideoWriter(tmp_path / "a.mp4", fps=FPS, codec=codec, title="a red ball") as video:
        for first in range(0, 30, 3):
            video.write(numbered_frames(first, first + 3))
    assert names(tmp_path) == ["a.mp4"]
    assert played(video.path) == list(range(30)) and video.num_frames == 30
    with av.open(video.path) as container:
        stream = container.streams.video[0]
        assert (stream.average_rate, stream.frames) == (FPS, 30)
        assert container.duration == 30 / FPS * av.time_base
        assert container.metadata["title"] == "a red ball"


def test_colours_and_scale(tmp_path):
    """Single pixels keep their colour at an even scale, within what 8-bit YUV can hold."""
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[::2, ::2], pixels[::2, 1::2], pixels[1::2, ::2] = RED, GREEN, BLUE
    with VideoWriter(tmp_path / "a.mp4", fps=FPS, scale=8) as video:
        video.write(pixels[None])
    with av.open(video.path) as container:
        (frame,) = container.decode(video=0)
    shown = frame.to_ndarray(format="rgb24")
    assert shown.shape == (128, 128, 3)
    np.testing.assert_allclose(shown[4::8, 4::8].astype(int), pixels.astype(int), atol=12)


def test_broadcast_rate(tmp_path):
    with VideoWriter(tmp_path / "a.mp4", fps=24000 / 1001) as video:
        video.write(numbered_frames(0, 3))
    with av.open(video.path) as container:
        rate = container.streams.video[0].average_rate
    assert rate is not None and (rate.numerator, rate.denominator) == (24000, 1001)


def test_same_frames_same_bytes(tmp_path):
    for name, step in (("a.mp4", 1), ("b.mp4", 10)):
        with VideoWriter(tmp_path / name, fps=FPS, comment="seed 1") as video:
            for first in range(0, 20, step):
                video.write(numbered_frames(first, first + step))
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_plays_while_it_grows(tmp_path):
    """All but the unfinished last second plays, under the partial name only."""
    with VideoWriter(tmp_path / "a.mp4", fps=FPS) as video:
        for number in range(5 * FPS):
            video.write(numbered_frames(number, number + 1))
            if number >= FPS:
                snapshot = shutil.copy(video.partial_path, tmp_path / "snapshot")
                shown = played(Path(snapshot))
                assert shown == list(range(len(shown))) and len(shown) > number - FPS
            assert not video.path.exists()


def test_kill_leaves_a_partial_video_that_plays(tmp_path):
    program = f"""
import os, signal
from tests.sampling.test_writer import *
with VideoWriter({str(tmp_path / "a.mp4")!r}, fps=FPS) as video:
    video.write(numbered_frames(0, 30))
    os.kill(os.getpid(), signal.SIGKILL)
"""
    root = Path(__file__).parents[2]
    killed = subprocess.run([sys.executable, "-c", program], cwd=root, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert names(tmp_path) == [".a.mp4.partial"]
    assert played(tmp_path / ".a.mp4.partial") == list(range(24))
    # The next run neither trips over it nor destroys it.
    with VideoWriter(tmp_path / "a.mp4", fps=FPS) as video:
        video.write(numbered_frames(0, 4))
    assert played(tmp_path / "a.mp4") == [0, 1, 2, 3]
    assert played(tmp_path / ".a.mp4.partial") == list(range(24))


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError("out of ideas")])
def test_interrupted_video_is_kept_whole(tmp_path, error):
    with pytest.raises(type(error) if isinstance(error, Exception) else error):
        with VideoWriter(tmp_path / "a.mp4", fps=FPS) as video:
            video.write(numbered_frames(0, 13))
            raise error
    assert names(tmp_path) == ["a.mp4"] and played(video.path) == list(range(13))


def test_interrupt_at_any_line(tmp_path):
    """Ctrl-C wherever Python can notice it inside `write`: what was written before plays."""
    first, rest = numbered_frames(0, 3), numbered_frames(3, 5)
    for moment in itertools.count():
        lines = itertools.count()

        def interrupt(frame, event, argument, lines=lines, moment=moment):
            ours = "vidcache_jax/sampling" in frame.f_code.co_filename
            if ours and event == "line" and next(lines) == moment:
                sys.settrace(None)
                raise KeyboardInterrupt
            return interrupt

        before = sys.gettrace()
        try:
            with VideoWriter(tmp_path / "a.mp4", fps=FPS) as video:
                video.write(first)
                sys.settrace(interrupt)
                video.write(rest)
                break
        except KeyboardInterrupt:
            shown = played(video.path)
            assert 3 <= len(shown) <= 5 and shown == list(range(len(shown)))
        finally:
            sys.settrace(before)
    assert moment > 10


def test_no_frames_leave_nothing_and_spare_the_old_file(tmp_path):
    (tmp_path / "old.mp4").write_bytes(b"old")
    for name in ("old.mp4", "new.mp4"):
        with VideoWriter(tmp_path / name, fps=FPS) as video:
            video.write(numbered_frames(0, 1)[:0])
    with pytest.raises(KeyboardInterrupt), VideoWriter(tmp_path / "old.mp4", fps=FPS):
        raise KeyboardInterrupt
    assert names(tmp_path) == ["old.mp4"] and (tmp_path / "old.mp4").read_bytes() == b"old"


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    with VideoWriter(tmp_path / "a.mp4", fps=FPS) as one:
        with VideoWriter(tmp_path / "a.mp4", fps=FPS) as other:
            one.write(numbered_frames(0, 10))
            other.write(numbered_frames(10, 30))
        assert played(one.path) == list(range(10, 30))
        one.write(numbered_frames(10, 12))
    assert played(one.path) == list(range(12)) and names(tmp_path) == ["a.mp4"]


def whole_size(directory: Path) -> int:
    with VideoWriter(directory / "whole.mp4", fps=FPS) as video:
        video.write(numbered_frames(0, 40))
    size = video.path.stat().st_size
    video.path.unlink()
    return size


def test_disk_full_keeps_what_fits(tmp_path, monkeypatch):
    monkeypatch.setattr(output_file, "_PROBE_BYTES", 0)
    size = whole_size(tmp_path)
    kept = []
    # All along the file, and closer at its end, where the index of all frames is written.
    for limit in sorted([*range(0, size, size // 16), *range(size - 1000, size, 50), size - 1]):
        with largest_file(limit), pytest.raises(OSError, match="cannot write .*; choose") as error:
            with VideoWriter(tmp_path / "a.mp4", fps=FPS) as video:
                for first in range(0, 40, 4):
                    video.write(numbered_frames(first, first + 4))
        said = str(error.value)
        if video.path.exists():
            kept.append(played(video.path))
            assert f"The first {len(kept[-1]) / FPS:.1f} s are kept" in said
            assert video.path.stat().st_size <= limit
            video.path.unlink()
        else:
            assert "kept" not in said
        assert names(tmp_path) == []
    assert all(shown == list(range(len(shown))) for shown in kept)
    # Whole seconds are kept, more on more room, and all frames once only the index is missing.
    assert {len(shown) for shown in kept} == {8, 16, 24, 32, 40}
    assert [len(shown) for shown in kept] == sorted(len(shown) for shown in kept)


def test_disk_full_in_the_middle_of_an_interrupt(tmp_path):
    """The interrupt goes on; that the end did not fit is noted on it."""
    with pytest.raises(KeyboardInterrupt) as error, ExitStack() as limits:
        with VideoWriter(tmp_path / "a.mp4", fps=FPS) as video:
            video.write(numbered_frames(0, 12))
            limits.enter_context(largest_file(os.path.getsize(video.partial_path)))
            raise KeyboardInterrupt
    assert "The first 1.0 s are kept" in error.value.__notes__[0]
    assert played(video.path) == list(range(8))


def test_full_disk_is_noticed_before_the_first_frame(tmp_path):
    with largest_file(1000), pytest.raises(OSError, match="cannot write .*a.mp4"):
        VideoWriter(tmp_path / "a.mp4", fps=FPS)
    assert names(tmp_path) == []


def test_impossible_places(tmp_path, monkeypatch):
    (tmp_path / "directory.mp4").mkdir()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(IsADirectoryError, match="directory.mp4 is a directory"):
        VideoWriter(tmp_path / "directory.mp4", fps=FPS)
    with pytest.raises(FileNotFoundError, match="no directory .*missing"):
        VideoWriter(tmp_path / "missing" / "a.mp4", fps=FPS)
    with pytest.raises(OSError, match="cannot write .*Not a directory"):
        VideoWriter(tmp_path / "file" / "a.mp4", fps=FPS)
    with pytest.raises(OSError, match="cannot write .*File name too long"):
        VideoWriter(tmp_path / f"{'a' * 300}.mp4", fps=FPS)
    for name in ("a.mkv", "a", ".mp4"):
        with pytest.raises(ValueError, match="must end in .mp4"):
            VideoWriter(tmp_path / name, fps=FPS)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    # Refused in earnest only to ordinary users, and tests may run as root.
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(OSError, match="cannot write .*: Permission denied; choose another place"):
        VideoWriter(tmp_path / "a.mp4", fps=FPS)


def test_place_lost_at_the_end_says_where_the_video_is(tmp_path):
    video = VideoWriter(tmp_path / "a.mp4", fps=FPS)
    video.write(numbered_frames(0, 3))
    video.path.mkdir()
    with pytest.raises(OSError, match="it is kept as .*a.mp4.partial"):
        video.close()
    assert played(video.partial_path) == [0, 1, 2]


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"fps": 0}, "fps=0 must be positive"),
        ({"fps": -1}, "fps=-1 must be positive"),
        ({"fps": float("nan")}, "fps=nan must be positive"),
        ({"scale": 0}, "scale=0 must be at least 1"),
        ({"codec": "gif"}, "no video codec 'gif' in this PyAV; there are "),
    ],
)
def test_impossible_settings(tmp_path, wrong, said):
    with pytest.raises(ValueError, match=said):
        VideoWriter(tmp_path / "a.mp4", **{"fps": FPS, **wrong})
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "frames, said",
    [
        (np.zeros((1, 8, 8, 3), np.float32), "must be uint8 .*, not float32"),
        (np.zeros((8, 8, 3), np.uint8), r"not uint8 \[8, 8, 3\]"),
        (np.zeros((1, 8, 8, 4), np.uint8), r"not uint8 \[1, 8, 8, 4\]"),
        (np.zeros((1, 9, 8, 3), np.uint8), "9 x 8 pixels .*scale=1.* even scale"),
        (np.zeros((1, 0, 8, 3), np.uint8), "0 x 8 pixels"),
    ],
)
def test_impossible_frames(tmp_path, frames, said):
    with pytest.raises(ValueError, match=said):
        with VideoWriter(tmp_path / "a.mp4", fps=FPS) as video:
            video.write(frames)
    assert names(tmp_path) == []


def test_size_must_not_change_and_closed_is_closed(tmp_path):
    video = VideoWriter(tmp_path / "a.mp4", fps=FPS)
    video.write(numbered_frames(0, 3))
    with pytest.raises(ValueError, match="16 x 16 pixels after frames of 32 x 32"):
        video.write(numbered_frames(3, 4, size=16))
    video.close()
    video.close()
    with pytest.raises(ValueError, match="is closed"):
        video.write(numbered_frames(3, 4))
    assert played(video.path) == [0, 1, 2]


def test_codec_choice(monkeypatch):
    assert mp4.choose_codec() == "libx264"
    monkeypatch.setattr(av, "codecs_available", {"mpeg4"})
    assert mp4.choose_codec() == "mpeg4"
    monkeypatch.setattr(av, "codecs_available", set())
    with pytest.raises(ValueError, match="no video codec"):
        mp4.choose_codec()
