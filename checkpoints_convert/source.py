"""Tensors of a checkpoint by name, none of them read before it is needed."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class LazyTensor:
    """Shape and dtype of a tensor, and how to read it.

    Attributes:
      read: reads the tensor, anew each time; raises `CheckpointError` where it cannot.
      origin: the file it lies in, for messages.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]
    origin: str


Tensors = Mapping[str, LazyTensor]


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """A checkpoint as it lies on disk.

    Attributes:
      path: what the user named.
      tensors: under the names of the files.
      files: all that was opened, weights and their descriptions.
      config: the ``config.json`` beside the weights, if there is one.
      picked: the dict of a ``.pt`` file that `tensors` is, such as ``"generator_ema"``.
      left_out: other entries of that file.
    """

    path: Path
    tensors: Tensors
    files: tuple[Path, ...] = ()
    config: Mapping[str, Any] | None = None
    picked: str | None = None
    left_out: tuple[str, ...] = ()


def in_memory(arrays: Mapping[str, np.ndarray], origin: str = "the mapping") -> Tensors:
    """Arrays as tensors that are read by handing them over."""

    def lazy(value: np.ndarray) -> LazyTensor:
        array = np.asarray(value)
        return LazyTensor(array.shape, array.dtype, lambda: array, origin)

    return {name: lazy(value) for name, value in arrays.items()}


def is_float(dtype: np.dtype) -> bool:
    """Of a dtype that holds weights as they are: 16 to 64 bits, no scaled 8-bit formats."""
    return jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize > 1
