"""What must hold for the views of any one chunk: C2, C3 and the bookkeeping of C8."""

from typing import Any

import numpy as np

from vidcache_jax.cache.state import CacheSpec
from vidcache_jax.testing.trial import ChunkRecord, Heads, ViewRecord


def require(holds: Any, clause: str, message: str) -> None:
    """Raises an AssertionError that names the violated clause."""
    if not np.all(holds):
        raise AssertionError(f"{clause}: {message}")


def check_chunk(
    record: ChunkRecord,
    heads: Heads,
    spec: CacheSpec,
    past_frames: int,
    distinct_positions: bool,
) -> None:
    """Checks what a policy showed while it was given one chunk after ``past_frames`` frames."""
    for name, view, frames in (
        ("denoise", record.before, past_frames),
        ("commit", record.after, past_frames + spec.frames_per_chunk),
    ):
        _check_types(view, spec, name)
        _check_count(view, frames * spec.tokens_per_frame, name)
        _check_queries(view, spec, name)
        _check_visible(view, spec, name)
    _check_past(record.before)
    _check_own_chunk(record.after, heads, spec)
    if distinct_positions:
        _check_distinct(record.before, "denoise")
        _check_distinct(record.after, "commit")


def _check_types(view: ViewRecord, spec: CacheSpec, name: str) -> None:
    layers, batch, _, tokens, _ = view.k.shape
    expected = (layers, batch, spec.num_heads, tokens, spec.head_dim)
    require(
        view.k.shape == expected and view.v.shape == expected,
        "C4",
        f"{name} view: keys {view.k.shape} and values {view.v.shape} should be {expected}",
    )
    own = spec.frames_per_chunk * spec.tokens_per_frame
    for field, ending in (("position", (tokens, 3)), ("visible", (tokens,)),
                          ("query_position", (own, 3))):  # fmt: skip
        array = getattr(view, field)
        shapes = [(layers, batch, groups, *ending) for groups in (1, spec.num_heads)]
        require(array.shape in shapes, "C4", f"{name} view: {field} {array.shape} not in {shapes}")
        dtype = np.dtype(bool if field == "visible" else np.int32)
        clause = "C4" if field == "visible" else "C8"
        require(array.dtype == dtype, clause, f"{name} view: {field} is {array.dtype}, not {dtype}")


def _check_count(view: ViewRecord, committed: int, name: str) -> None:
    """In particular, the first chunk of a video sees no past."""
    count = view.visible.sum(axis=-1).max()
    require(
        count <= committed,
        "C3",
        f"{name} view: a head sees {count} tokens when {committed} were committed: an empty slot "
        "is visible, or a token twice",
    )


def _check_queries(view: ViewRecord, spec: CacheSpec, name: str) -> None:
    """Queries lie on consecutive frames from 0 up, row by row."""
    frame, row, column = np.moveaxis(view.query_position, -1, 0)
    index = np.arange(frame.shape[-1]) % spec.tokens_per_frame
    require(
        (row == index // spec.grid[1]) & (column == index % spec.grid[1]),
        "C2",
        f"{name} view: the rows and columns of query_position are not those of the grid",
    )
    frame_index = np.arange(frame.shape[-1]) // spec.tokens_per_frame
    require(
        frame == frame[..., :1] + frame_index,
        "C2",
        f"{name} view: query_position does not count the chunk's frames up one by one",
    )
    require(frame >= 0, "C8", f"{name} view: query_position is negative; does int32 overflow?")


def _check_visible(view: ViewRecord, spec: CacheSpec, name: str) -> None:
    frame, row, column = np.moveaxis(view.position, -1, 0)
    hidden = ~view.visible
    require((frame >= 0) | hidden, "C8", f"{name} view: a visible token's frame is negative")
    require(
        ((row >= 0) & (row < spec.grid[0]) & (column >= 0) & (column < spec.grid[1])) | hidden,
        "C2",
        f"{name} view: a visible token lies outside of the grid {spec.grid}",
    )


def _check_past(view: ViewRecord) -> None:
    """Before its commit, a chunk comes after everything that it sees."""
    latest = np.where(view.visible, view.position[..., 0], -1).max(axis=-1)
    require(
        latest < view.query_position[..., 0].min(axis=-1),
        "C2",
        "denoise view: a cached token's frame position is not before the chunk's own",
    )


def _check_own_chunk(view: ViewRecord, heads: Heads, spec: CacheSpec) -> None:
    """Every head sees the chunk it has just been given, bits unchanged, where the queries are."""
    same_place = (view.position[..., None, :, :] == view.query_position[..., None, :]).all(axis=-1)
    found = same_place & view.visible[..., None, :]
    require(
        found.any(axis=-1),
        "C8",
        "commit view: a token of the chunk just committed is not visible at its query_position",
    )
    stored = _same_rows(view.k, heads[1]) & _same_rows(view.v, heads[2])
    require(
        (found & stored).any(axis=-1),
        "C2",
        "commit view: a token of the chunk just committed has another key or value than it came "
        "with: keys are stored un-rotated and values as they are",
    )


def _same_rows(stored: np.ndarray, given: np.ndarray) -> np.ndarray:
    """[..., T, S]: whether stored vector s has the bits of given vector t."""
    stored, given = (np.ascontiguousarray(x).view(f"u{x.dtype.itemsize}") for x in (stored, given))
    if stored.dtype != given.dtype:
        raise AssertionError("C4: the view's keys and values do not have the dtype of the spec")
    return (given[..., :, None, :] == stored[..., None, :, :]).all(axis=-1)


def _check_distinct(view: ViewRecord, name: str) -> None:
    position, visible = np.broadcast_arrays(view.position, view.visible[..., None])
    rows = position.reshape(-1, *position.shape[-2:])
    for place, seen in zip(rows, visible[..., 0].reshape(len(rows), -1), strict=True):
        listed = place[seen]
        require(
            len(np.unique(listed, axis=0)) == len(listed),
            "C2",
            f"{name} view: two visible tokens of one head share a position; a policy that means "
            "this is checked with distinct_positions=False",
        )
