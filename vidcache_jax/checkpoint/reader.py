"""Restores the weights of a converted checkpoint, sharded as they are wanted."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore as ts

from vidcache_jax.array_typing import Params
from vidcache_jax.checkpoint.error import CheckpointError
from vidcache_jax.checkpoint.info import PARAMS_NAME, CheckpointInfo, read_info
from vidcache_jax.checkpoint.paths import by_path, from_paths
from vidcache_jax.config import WanConfig
from vidcache_jax.models.wan_dit import abstract_params


def load_checkpoint(
    folder: str | Path, *, dtype: Any = None, sharding: Any = None
) -> tuple[Params, WanConfig, CheckpointInfo]:
    """A converted DiT.

    Args:
      folder: as written by ``checkpoints_convert``.
      dtype: of the parameters; by default the one they were written in.
      sharding: a `jax.sharding.Sharding` for all parameters, or a tree of them like the
        parameters; by default everything goes to this process's first device. Each device reads
        only its own part.

    Raises:
      CheckpointError: the folder is no converted DiT, or damaged.
    """
    info = read_info(folder)
    config = dit_config(folder, info)
    abstract = abstract_dit(folder, info, config, dtype)
    return restore_params(folder, abstract, sharding=sharding), config, info


def abstract_dit(
    folder: str | Path, info: CheckpointInfo, config: WanConfig, dtype: Any = None
) -> Params:
    """Shapes and dtypes of a converted DiT's parameters, as `load_checkpoint` restores them.

    Raises:
      CheckpointError: parameters cannot have that dtype.
    """
    try:
        return abstract_params(config, jnp.dtype(info.dtype if dtype is None else dtype))
    except TypeError as error:
        raise CheckpointError(f"cannot load {folder}: {error}; choose another dtype") from error


def dit_config(folder: str | Path, info: CheckpointInfo) -> WanConfig:
    """The config of a converted DiT.

    Raises:
      CheckpointError: it is no DiT, or the config is damaged.
    """
    if info.kind != "dit":
        raise CheckpointError(f"{folder} holds a {info.kind}, not a DiT; give another folder")
    try:
        return WanConfig.from_dict(info.config)
    except (AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(f"the config of {folder}: {error}; convert again") from error


def restore_params(folder: str | Path, abstract: Params, *, sharding: Any = None) -> Params:
    """Parameters with the shapes and dtypes of ``abstract`` (a nested dict).

    One parameter after the other, so that little more than the parameters is ever in memory.

    Raises:
      CheckpointError: names or shapes on disk are others, or the folder is damaged.
    """
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    wanted = by_path(abstract)
    if isinstance(sharding, jax.sharding.Sharding):
        shardings = dict.fromkeys(wanted, sharding)
    else:
        shardings = by_path(sharding)
        if shardings.keys() != wanted.keys():
            raise ValueError("sharding must be one sharding, or a tree of them like the parameters")
    arrays = open_arrays(folder)
    _check_shapes(folder, arrays, wanted)

    def restore(name: str, dtype: Any) -> jax.Array:
        array = arrays[name]
        read = lambda part: read_part(folder, name, array, part).astype(dtype, copy=False)
        return jax.make_array_from_callback(array.shape, shardings[name], read)

    return from_paths({name: restore(name, leaf.dtype) for name, leaf in wanted.items()})


def open_arrays(folder: str | Path) -> dict[str, ts.TensorStore]:
    """The arrays of a converted checkpoint by their paths, ``a/b/kernel``; nothing is read yet.

    Indexing one and calling ``.read().result()`` reads only the layers asked for. This reads what
    orbax documents as its format, Zarr 3 arrays in an OCDBT database, by tensorstore, because
    orbax itself restores whole arrays, many at once: twice the memory.

    Raises:
      CheckpointError: the folder has no weights, or damaged ones.
    """
    database = {
        "driver": "ocdbt",
        "base": {"driver": "file", "path": f"{Path(folder).absolute() / PARAMS_NAME}/"},
    }
    described = "/zarr.json"
    try:
        keys = [key.decode() for key in ts.KvStore.open(database).result().list().result()]
        names = [key.removesuffix(described) for key in keys if key.endswith(described)]
        if not names:
            raise ValueError("there are no arrays in it")
        opened = {
            name: ts.open(
                {
                    "driver": "zarr3",
                    "kvstore": {**database, "path": f"{name}/"},
                    # A lost piece is an error, not zeros.
                    "fill_missing_data_reads": False,
                },
                open=True,
                read=True,
            ).result()
            for name in names
        }
    # Whatever tensorstore raises for damaged files; its message is kept.
    except Exception as error:
        raise CheckpointError(f"cannot read {folder}: {error}; convert again") from error
    return {name.replace(".", "/"): array for name, array in opened.items()}


def read_part(folder: str | Path, name: str, array: ts.TensorStore, part: Any = ...) -> np.ndarray:
    """Part of one array of `open_arrays`, say one layer.

    Raises:
      CheckpointError: it is damaged.
    """
    try:
        return array[part].read().result()
    except Exception as error:
        raise CheckpointError(f"cannot read {name} of {folder}: {error}; convert again") from error


def _check_shapes(
    folder: str | Path, arrays: dict[str, ts.TensorStore], abstract: dict[str, Any]
) -> None:
    wanted = {name: tuple(leaf.shape) for name, leaf in abstract.items()}
    given = {name: tuple(array.shape) for name, array in arrays.items()}
    if wanted != given:
        differing = sorted({name for name, _ in wanted.items() ^ given.items()})
        raise CheckpointError(
            f"{folder} does not hold the parameters of its own config; they differ in "
            f"{differing}; convert again"
        )
