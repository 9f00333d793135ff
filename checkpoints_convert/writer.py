"""Writes a converted checkpoint, layer by layer, so that it appears whole or not at all."""

import contextlib
import dataclasses
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

from checkpoints_convert.stacks import LazyLeaf
from vidcache_jax import __version__
from vidcache_jax.array_typing import Params
from vidcache_jax.checkpoint import CheckpointError, CheckpointInfo
from vidcache_jax.checkpoint.info import INFO_NAME, PARAMS_NAME
from vidcache_jax.config import WanConfig

Progress = Callable[[int], None]
"""Told the bytes that were just done with."""

_CHUNK_BYTES = 16 << 20
"""What is read at least; a device that holds a part of a parameter reads little more."""


def save_checkpoint(
    folder: str | Path,
    params: Params,
    info: CheckpointInfo | WanConfig,
    *,
    progress: Progress = lambda nbytes: None,
) -> None:
    """Writes parameters and what is known of them to a new folder.

    The weights are one orbax checkpoint, stacked over layers as the model takes them, in pieces of
    at most 16 MiB. Peak memory is a few of the largest tensors of one layer, if ``params`` are
    lazy.

    Args:
      folder: must not exist. It is written under another name and renamed when it is complete; what
        a killed run left is removed by the next.
      params: a nested dict of arrays or `LazyLeaf`, all of one dtype.
      info: or only the config, for weights that come from no file.

    Raises:
      CheckpointError: a tensor cannot be read or is not finite, there is not enough space, or the
        folder cannot be written.
    """
    dtypes = {np.dtype(leaf.dtype) for leaf in jax.tree.leaves(params)}
    if len(dtypes) != 1:
        raise CheckpointError(f"cannot write {folder}: parameters of several dtypes {dtypes}")
    (dtype,) = dtypes
    if isinstance(info, WanConfig):
        info = CheckpointInfo(
            kind="dit", config=dataclasses.asdict(info), dtype=dtype.name, family="vidcache_jax"
        )
    info = dataclasses.replace(info, dtype=dtype.name, written_by=f"vidcache_jax {__version__}")
    folder = Path(os.path.abspath(folder))
    check_space(folder, sum(leaf.nbytes for leaf in jax.tree.leaves(params)))
    with new_folder(folder) as partial:
        _save_params(partial / PARAMS_NAME, params, progress)
        (partial / INFO_NAME).write_text(info.to_json(), encoding="utf-8")


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write in, which gets its name when the block is left without an error.

    Raises:
      CheckpointError: it exists, cannot be written, or another process is at it; any `OSError` and
        tensorstore's errors inside the block, as such.
    """
    if os.path.lexists(folder):
        raise CheckpointError(f"{folder} exists already; remove it, or choose another name")
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        partial.mkdir(exist_ok=True)
        lock = os.open(partial, os.O_RDONLY)
    except OSError as error:
        raise _cannot_write(folder, error) from error
    try:
        try:
            # Held as long as this process lives, however it ends.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise CheckpointError(
                f"another process is writing {folder}; wait for it, or choose another name"
            ) from error
        try:
            for left_behind in partial.iterdir():
                _remove(left_behind)
            yield partial
            os.rename(partial, folder)
        except BaseException as error:
            shutil.rmtree(partial, ignore_errors=True)
            if isinstance(error, CheckpointError) or not isinstance(error, Exception):
                raise
            raise _cannot_write(folder, error) from error
    finally:
        os.close(lock)


def check_space(folder: Path, nbytes: int) -> None:
    """Raises `CheckpointError` if the disk has less room than that."""
    if not folder.parent.is_dir():
        raise CheckpointError(f"no folder {folder.parent} to write {folder.name} in; create it")
    free = shutil.disk_usage(folder.parent).free
    if nbytes > free:
        raise CheckpointError(
            f"cannot write {folder}: it needs {nbytes / 1e9:.1f} GB and the disk has "
            f"{free / 1e9:.1f} GB free; make room, choose another place, or --dtype bfloat16"
        )


def _save_params(path: Path, params: Params, progress: Progress) -> None:
    handlers = ocp.type_handlers
    registry = handlers.create_type_handler_registry(
        (LazyLeaf, _LeafHandler(progress)),
        (np.ndarray, handlers.NumpyHandler()),
        (jax.Array, handlers.ArrayHandler()),
    )
    handler = ocp.PyTreeCheckpointHandler(
        use_ocdbt=True,
        use_zarr3=True,
        # Weights do not compress: 20 % in bfloat16, for four times the time.
        use_compression=False,
        type_handler_registry=registry,
    )
    # Layers first: a layer is written when it is read. Small stacks stay in one piece.
    layout = lambda leaf: ocp.SaveArgs(
        chunk_byte_size=_CHUNK_BYTES, shard_axes=(0,) if leaf.nbytes > _CHUNK_BYTES else ()
    )
    save_args = ocp.args.PyTreeSave(params, save_args=jax.tree.map(layout, params))
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(path, args=save_args)


class _LeafHandler(ocp.type_handlers.NumpyHandler):
    """Saves a `LazyLeaf` as the array it stands for, without ever holding all of it."""

    def __init__(self, progress: Progress):
        super().__init__()
        self._progress = progress

    async def serialize(
        self,
        values: Sequence[Any],
        infos: Sequence[ocp.type_handlers.ParamInfo],
        args: Sequence[ocp.SaveArgs] | None = None,
    ) -> Sequence[Any]:
        args = args or [ocp.SaveArgs()] * len(values)
        # One after the other: gathered, all would be in memory at once.
        for leaf, info, arg in zip(values, infos, args, strict=True):
            await info.await_path_creation()
            spec = ocp.type_handlers.get_json_tspec_write(
                info,
                use_ocdbt=True,
                global_shape=leaf.shape,
                local_shape=leaf.shape,
                dtype=leaf.dtype,
                process_index=0,
                arg=arg,
            )
            array = await ts.open(spec, create=True, open=True, context=info.ts_context)
            rows_at_once = (array.chunk_layout.write_chunk.shape or (1,))[0]
            for rows, some in leaf.rows(rows_at_once):
                await array[rows].write(some, can_reference_source_data_indefinitely=True)
                self._progress(some.nbytes)
        return []


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _cannot_write(folder: Path, error: Exception) -> CheckpointError:
    reason = getattr(error, "strerror", None) or str(error).splitlines()[0][:600]
    return CheckpointError(
        f"cannot write {folder}: {reason}; nothing is left of it, make room or choose another place"
    )
