"""From a checkpoint's files to a converted folder."""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from checkpoints_convert.dit import DitCheckpoint
from checkpoints_convert.writer import Progress, save_checkpoint
from vidcache_jax.checkpoint import CheckpointError, CheckpointInfo, SourceFile

_BLOCK = 8 << 20
Stage = Callable[[str, int], Progress]
"""(what is being done, bytes of it) -> who to tell the progress."""


def silent(what: str, nbytes: int) -> Progress:
    """Tells nobody."""
    return lambda done: None


def convert(
    opened: DitCheckpoint, folder: str | Path, *, dtype: Any = None, stage: Stage = silent
) -> CheckpointInfo:
    """Writes the converted checkpoint.

    Args:
      opened: from `open_dit`.
      folder: must not exist.
      dtype: of the parameters; by default the widest of the source's.

    Raises:
      CheckpointError: see `save_checkpoint`; the sources are never touched.
    """
    dtype = jnp.dtype(dtype or opened.dtype)
    params = opened.params(dtype)
    progress = stage("sha256", sum(file.stat().st_size for file in opened.files))
    info = CheckpointInfo(
        kind="dit",
        config=dataclasses.asdict(opened.config),
        dtype=dtype.name,
        family=opened.family.name,
        picked=opened.source.picked,
        **dataclasses.asdict(opened.provenance),
        sources=tuple(
            SourceFile(name=file.name, sha256=sha256(file, progress)) for file in opened.files
        ),
    )
    nbytes = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    save_checkpoint(folder, params, info, progress=stage("converting", nbytes))
    return info


def sha256(path: Path, progress: Progress) -> str:
    """Of a file's bytes, in hexadecimal.

    Raises:
      CheckpointError: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
                progress(len(block))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}; check the disk") from error
    return digest.hexdigest()
