"""From a checkpoint's files to a converted folder."""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from checkpoints_convert.opened import OpenedModel
from checkpoints_convert.writer import Progress, save_checkpoint
from vidcache_jax.checkpoint import CheckpointError, CheckpointInfo, SourceFile

_BLOCK = 8 << 20
Stage = Callable[[str, int], Progress]
"""(what is being done, bytes of it) -> who to tell the progress."""


def silent(what: str, nbytes: int) -> Progress:
    """Tells nobody."""
    return lambda done: None


def convert(
    opened: OpenedModel, folder: str | Path, *, dtype: Any = None, stage: Stage = silent
) -> CheckpointInfo:
    """Writes the converted checkpoint.

    Args:
      opened: from `open_dit`, `open_vae` or `open_text_encoder`.
      folder: must not exist.
      dtype: of the parameters; by default the widest of the source's.

    Raises:
      CheckpointError: see `save_checkpoint`; the sources are never touched.
    """
    dtype = jnp.dtype(dtype or opened.dtype)
    params = opened.params(dtype)
    info = CheckpointInfo(
        kind=opened.kind,
        config=dataclasses.asdict(opened.config),
        dtype=dtype.name,
        family=opened.family,
        picked=opened.source.picked,
        **({} if opened.provenance is None else dataclasses.asdict(opened.provenance)),
        sources=source_files(opened.files, stage),
    )
    nbytes = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    save_checkpoint(folder, params, info, progress=stage("converting", nbytes))
    return info


def source_files(paths: Sequence[Path], stage: Stage) -> tuple[SourceFile, ...]:
    """Names and checksums.

    Raises:
      CheckpointError: one cannot be read.
    """
    progress = stage("sha256", sum(path.stat().st_size for path in paths))
    return tuple(SourceFile(name=path.name, sha256=_sha256(path, progress)) for path in paths)


def _sha256(path: Path, progress: Progress) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
                progress(len(block))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}; check the disk") from error
    return digest.hexdigest()
