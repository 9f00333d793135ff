"""Reads a converted checkpoint again and compares it with its source, bit by bit."""

from pathlib import Path

import numpy as np

from checkpoints_convert.convert import Stage, sha256, silent
from checkpoints_convert.dit import DitCheckpoint
from vidcache_jax.checkpoint import CheckpointError, read_info
from vidcache_jax.checkpoint.paths import by_path
from vidcache_jax.checkpoint.reader import open_arrays, read_part


def verify(opened: DitCheckpoint, folder: str | Path, *, stage: Stage = silent) -> int:
    """Compares every layer of every parameter, and the checksums of the source's files.

    Returns:
      How many tensors of the source were compared.

    Raises:
      CheckpointError: something differs; the message names the first parameter that does.
    """
    info = read_info(folder)
    progress = stage("sha256", sum(file.stat().st_size for file in opened.files))
    given = [(file.name, sha256(file, progress)) for file in opened.files]
    if given != [(file.name, file.sha256) for file in info.sources]:
        raise CheckpointError(
            f"{folder} was converted from other files than {[name for name, _ in given]}; "
            f"its sources are {[file.name for file in info.sources]}"
        )
    leaves = by_path(opened.params(info.dtype))
    arrays = open_arrays(folder)
    progress = stage("comparing", sum(leaf.nbytes for leaf in leaves.values()))
    for name, leaf in leaves.items():
        if name not in arrays or arrays[name].shape != leaf.shape:
            raise CheckpointError(f"{folder} has no {name} of shape {leaf.shape}; convert again")
        for rows, wanted in leaf.rows(1):
            own = read_part(folder, name, arrays[name], rows)
            if own.dtype != wanted.dtype or not np.array_equal(_bits(own), _bits(wanted)):
                layer = f" layer {rows.start}" if leaf.is_stacked else ""
                raise CheckpointError(f"{folder}: {name}{layer} differs from its source; convert "
                                      "again, and check the disk")  # fmt: skip
            progress(wanted.nbytes)
    return sum(len(leaf.parts) for leaf in leaves.values())


def _bits(value: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(value).view(np.uint8)
