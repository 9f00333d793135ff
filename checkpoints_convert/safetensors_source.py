"""Tensors of ``.safetensors`` files, one file or several with an index."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import safe_open

from checkpoints_convert.source import LazyTensor, Tensors
from vidcache_jax.checkpoint import CheckpointError

_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U64": "uint64", "U32": "uint32", "U16": "uint16",
    "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
_LARGEST_JSON = 64 << 20


def open_safetensors(path: Path) -> Tensors:
    """Names, shapes and dtypes of one file.

    Raises:
      CheckpointError: the file is missing, truncated or not of this format.
    """
    try:
        with safe_open(path, framework="np") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}
            found = {
                name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()
            }
    # The library's own error and, for strange headers, others.
    except Exception as error:
        raise unreadable(path, error) from error

    def lazy(name: str, shape: tuple[int, ...], dtype: str) -> LazyTensor:
        if dtype not in _DTYPES:
            raise CheckpointError(
                f"{path}: tensor {name} is of dtype {dtype}, which cannot be converted; "
                "take the bfloat16 or float32 version of the checkpoint"
            )
        return LazyTensor(shape, jnp.dtype(_DTYPES[dtype]), lambda: _read(path, name), str(path))

    return {name: lazy(name, *about) for name, about in found.items()}


def open_sharded(index_path: Path) -> tuple[Tensors, tuple[Path, ...]]:
    """Tensors of all files that an index (``*.safetensors.index.json``) lists.

    Raises:
      CheckpointError: a file is missing or unreadable, or holds other tensors than the index says.
    """
    weight_map = read_json(index_path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index_path} has no weight_map; download it again")
    shards: dict[str, set[str]] = {}
    for name, shard in weight_map.items():
        # A name with a folder in it could point anywhere.
        if not isinstance(shard, str) or Path(shard).name != shard or shard in ("", ".", ".."):
            raise CheckpointError(f"{index_path}: {name} lies in {shard!r}, which is no file name")
        shards.setdefault(shard, set()).add(name)
    tensors: dict[str, LazyTensor] = {}
    files = [index_path]
    for shard, names in sorted(shards.items()):
        path = index_path.parent / shard
        files.append(path)
        given = open_safetensors(path)
        if given.keys() != names:
            differing = ", ".join(sorted(given.keys() ^ names)[:5])
            raise CheckpointError(
                f"{path} does not hold the tensors that {index_path.name} lists for it, they "
                f"differ in {differing}; download both again"
            )
        tensors.update(given)
    return tensors, tuple(files)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that must hold an object.

    Raises:
      CheckpointError: it does not.
    """
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise ValueError(f"larger than {_LARGEST_JSON} bytes")
        fields = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise unreadable(path, error) from error
    if not isinstance(fields, dict):
        raise CheckpointError(f"{path} is not a JSON object; download it again")
    return fields


def unreadable(path: Path, error: Exception) -> CheckpointError:
    """One line for a file that cannot be opened; raise it from ``error``."""
    if isinstance(error, OSError) and error.strerror:
        return CheckpointError(f"cannot open {path}: {error.strerror}; check the path")
    if not path.is_file():
        return CheckpointError(f"cannot open {path}: there is no such file; check the path")
    reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
    return CheckpointError(
        f"cannot read {path} ({reason}): it is truncated, damaged or of another format; "
        "download it again"
    )


def _read(path: Path, name: str) -> np.ndarray:
    try:
        # Opened for each tensor: a mapping keeps every page that was read through it, and the
        # pages of a whole file are the model.
        with safe_open(path, framework="np") as file:
            return file.get_tensor(name)
    except Exception as error:
        raise CheckpointError(
            f"{path}: tensor {name} cannot be read ({error}); download it again"
        ) from error
