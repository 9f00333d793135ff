"""The shipped weights: a nested dict of arrays as a flat safetensors file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file, save

WEIGHTS = Path(__file__).parent / "weights"


def save_weights(path: Path, params: Mapping[str, Any], dtype=np.float16) -> None:
    """Writes params under their paths, ``a/b/kernel``; the file appears whole or not at all."""
    flat = {name: np.asarray(leaf, dtype) for name, leaf in flatten_dict(params, sep="/").items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(save(flat))
    partial.replace(path)


def load_weights(path: Path, like: Any) -> Any:
    """Params of the same structure and dtypes as ``like`` (arrays or their abstract shapes).

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: names or shapes in the file differ from ``like``.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}; scripts/train_tiny.py makes them")
    given = unflatten_dict(load_file(path), sep="/")
    shapes = lambda tree: jax.tree.map(lambda leaf: tuple(leaf.shape), tree)
    if shapes(given) != shapes(like):
        raise ValueError(f"{path} does not hold the weights of this model; reinstall the package")
    return jax.tree.map(lambda leaf, own: jnp.asarray(leaf, own.dtype), given, like)
