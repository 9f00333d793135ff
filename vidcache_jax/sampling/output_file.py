"""Where a video or picture goes: checked before any work, written aside, moved when whole."""

import contextlib
import itertools
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

# Enough to notice a full disk before an hour of sampling rather than after it.
_PROBE_BYTES = 1 << 18


def reserve(path: str | os.PathLike[str], suffix: str) -> tuple[Path, Path]:
    """Checks that a file can be written at `path` and creates the empty file to write meanwhile.

    `video.mp4` is written as `.video.mp4.partial` beside it (`.video.mp4.2.partial` if that one
    exists, say because another run is at it or was killed) and moved by `publish`, so that
    nothing half-written ever has the final name.

    Args:
      path: the final name; an existing file there stays until `publish`.
      suffix: what the name must end in, e.g. ".mp4".

    Returns:
      The absolute final path and the path of the partial file.

    Raises:
      ValueError: the name ends in something else.
      OSError: (or the fitting subclass) the place is a directory, has no parent directory, or
        cannot be written.
    """
    path = Path(os.path.abspath(path))
    if os.path.isdir(path):
        raise IsADirectoryError(f"{path} is a directory; name a {suffix} file in it")
    if path.suffix.lower() != suffix:
        raise ValueError(f"cannot write {path.name!r}: the name must end in {suffix}")
    try:
        partial = _create_beside(path)
    except FileNotFoundError as error:
        message = f"no directory {path.parent} to write {path.name} in; create it first"
        raise FileNotFoundError(message) from error
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        with partial.open("r+b") as file:
            file.write(bytes(_PROBE_BYTES))
            file.truncate(0)
    except OSError as error:
        discard(partial)
        raise cannot_write(path, error) from error
    return path, partial


def publish(partial: Path, path: Path) -> None:
    """Gives the finished partial file its final name, replacing what was there.

    Raises:
      OSError: it cannot be moved; the message says where it is instead.
    """
    try:
        os.replace(partial, path)
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror}; it is kept as {partial}") from error


def discard(partial: Path) -> None:
    """Removes a partial file, if it is there."""
    partial.unlink(missing_ok=True)


def cannot_write(path: Path, error: OSError) -> OSError:
    """One clear line for an operating system's refusal; raise it from `error`."""
    return OSError(f"cannot write {path}: {error.strerror}; choose another place")


def write_text(path: Path, text: str) -> None:
    """A small file, whole or not at all.

    Raises:
      OSError: it cannot be written; an older file then stays as it was.
    """
    path, partial = reserve(path, path.suffix)
    try:
        partial.write_text(text, encoding="utf-8")
    except OSError as error:
        discard(partial)
        raise cannot_write(path, error) from error
    publish(partial, path)


@contextlib.contextmanager
def folder_aside(path: Path) -> Iterator[Path]:
    """An empty folder beside ``path``, to make it in and move it from when it is whole.

    Whatever happens nothing of the folder stays, also of an earlier process that was killed.
    """
    aside = path.with_name(f".{path.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def slug(text: str, length: int = 40) -> str:
    """Lower-case words joined by hyphens, for file names that one can read."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:length].strip("-")


def _create_beside(path: Path) -> Path:
    for number in itertools.count(1):
        infix = "" if number == 1 else f".{number}"
        partial = path.with_name(f".{path.name}{infix}.partial")
        try:
            partial.open("xb").close()
        except FileExistsError:
            continue
        return partial
    raise AssertionError("the count has no end")
