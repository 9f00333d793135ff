"""Restores the weights of a converted checkpoint, sharded as they are wanted."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

from vidcache_jax.array_typing import Params
from vidcache_jax.checkpoint.error import CheckpointError
from vidcache_jax.checkpoint.info import PARAMS_NAME, CheckpointInfo, read_info
from vidcache_jax.checkpoint.paths import by_path
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
        parameters; by default everything goes to the first device. Each device reads only its
        own part.

    Raises:
      CheckpointError: the folder is no converted DiT, or damaged.
    """
    info = read_info(folder)
    if info.kind != "dit":
        raise CheckpointError(f"{folder} holds a {info.kind}, not a DiT; give another folder")
    try:
        config = WanConfig.from_dict(info.config)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{folder}: {error}; convert again") from error
    abstract = abstract_params(config, jnp.dtype(dtype or info.dtype))
    return restore_params(folder, abstract, sharding=sharding), config, info


def restore_params(folder: str | Path, abstract: Params, *, sharding: Any = None) -> Params:
    """Parameters with the shapes and dtypes of ``abstract`` (a nested dict).

    Raises:
      CheckpointError: names or shapes on disk are others, or the folder is damaged.
    """
    path = Path(folder).absolute() / PARAMS_NAME
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    if isinstance(sharding, jax.sharding.Sharding):
        whole = sharding
        sharding = jax.tree.map(lambda _: whole, abstract)
    arguments = jax.tree.map(
        # Strict: a shape on disk that is another is an error, not padded or cut.
        lambda leaf, own: ocp.ArrayRestoreArgs(
            restore_type=jax.Array,
            sharding=own,
            global_shape=leaf.shape,
            dtype=leaf.dtype,
            strict=True,
        ),
        abstract,
        sharding,
    )
    _check_shapes(folder, open_arrays(folder), abstract)
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            return checkpointer.restore(
                path, args=ocp.args.PyTreeRestore(item=abstract, restore_args=arguments)
            )
    # Whatever orbax and tensorstore raise for damaged files; their message is kept.
    except Exception as error:
        raise CheckpointError(f"cannot restore {folder}: {error}; convert again") from error


def open_arrays(folder: str | Path) -> dict[str, ts.TensorStore]:
    """The arrays of a converted checkpoint by their paths, ``a/b/kernel``; nothing is read yet.

    Indexing one and calling ``.read().result()`` reads only the layers asked for.

    Raises:
      CheckpointError: the folder has no weights, or damaged ones.
    """
    path = Path(folder).absolute() / PARAMS_NAME
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            tree = checkpointer.metadata(path).item_metadata.tree
        base = {"driver": "file", "path": f"{path}/"}
        return {
            name: ts.open(
                {
                    "driver": "zarr3",
                    "kvstore": {
                        "driver": "ocdbt",
                        "base": base,
                        "path": name.replace("/", ".") + "/",
                    },
                    # A lost piece is an error, not zeros.
                    "fill_missing_data_reads": False,
                },
                open=True,
                read=True,
            ).result()
            for name in by_path(tree)
        }
    except Exception as error:
        raise CheckpointError(f"cannot read {folder}: {error}; convert again") from error


def read_part(folder: str | Path, name: str, array: ts.TensorStore, part: Any = ...) -> np.ndarray:
    """Part of one array of `open_arrays`, say one layer.

    Raises:
      CheckpointError: it is damaged.
    """
    try:
        return array[part].read().result()
    except Exception as error:
        raise CheckpointError(f"cannot read {name} of {folder}: {error}; convert again") from error


def _check_shapes(folder: str | Path, arrays: dict[str, ts.TensorStore], abstract: Params) -> None:
    wanted = {name: tuple(leaf.shape) for name, leaf in by_path(abstract).items()}
    given = {name: tuple(array.shape) for name, array in arrays.items()}
    if wanted != given:
        differing = sorted(wanted.items() ^ given.items())
        raise CheckpointError(
            f"{folder} does not hold the parameters of its own config; they differ in "
            f"{sorted({name for name, _ in differing})}; convert again"
        )
