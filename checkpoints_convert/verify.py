"""Reads a converted checkpoint again and compares it with its source, bit by bit."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from checkpoints_convert.convert import Stage, silent, source_files
from checkpoints_convert.opened import OpenedModel
from vidcache_jax.checkpoint import CheckpointError, CheckpointInfo, read_info
from vidcache_jax.checkpoint.paths import by_path
from vidcache_jax.checkpoint.reader import open_arrays, read_part


def verify(opened: OpenedModel, folder: str | Path, *, stage: Stage = silent) -> int:
    """Compares every layer of every parameter, and the checksums of the source's files.

    Returns:
      How many tensors of the source were compared.

    Raises:
      CheckpointError: something differs; the message names the first parameter that does.
    """
    info = verify_sources(opened.files, folder, stage=stage)
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


def verify_sources(
    files: Sequence[Path], folder: str | Path, *, stage: Stage = silent
) -> CheckpointInfo:
    """The info of a converted folder, if these are the files that it was made from.

    Raises:
      CheckpointError: they are not.
    """
    info, given = read_info(folder), source_files(files, stage)
    if given != info.sources:
        raise CheckpointError(
            f"{folder} was converted from other files than {[file.name for file in given]}; "
            f"its sources are {[file.name for file in info.sources]}"
        )
    return info


def _bits(value: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(value).view(np.uint8)
