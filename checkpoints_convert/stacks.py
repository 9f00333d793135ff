"""Parameters that are put together layer by layer, when they are needed."""

import dataclasses
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from checkpoints_convert.source import LazyTensor, is_float
from vidcache_jax.checkpoint import CheckpointError


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """One tensor of the source and its way into a parameter."""

    name: str
    tensor: LazyTensor
    transform: Callable[[np.ndarray], np.ndarray]

    def value(self, dtype: np.dtype) -> np.ndarray:
        """The transformed tensor, checked.

        Raises:
          CheckpointError: it cannot be read, is no float, or is not finite.
        """
        if not is_float(self.tensor.dtype):
            raise CheckpointError(
                f"{self.tensor.origin}: tensor {self.name} is of dtype {self.tensor.dtype}, which "
                "are no plain weights; take the bfloat16 or float32 version of the checkpoint"
            )
        own = self.tensor.read()
        # Overflow is reported below, by name.
        with np.errstate(over="ignore", invalid="ignore"):
            value = self.transform(own).astype(dtype)
        if wrong := _not_finite(value):
            remedy = "the checkpoint is damaged or its training diverged"
            if not _not_finite(own):
                remedy = f"they do not fit {dtype}; convert to bfloat16 or float32"
            raise CheckpointError(
                f"{self.tensor.origin}: tensor {self.name} has {wrong} values that are NaN or "
                f"infinite; {remedy}"
            )
        return value


@dataclasses.dataclass(frozen=True, eq=False)
class LazyLeaf:
    """One parameter: a single part, or one part a layer, stacked on the first axis."""

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype
    parts: tuple[Part, ...]
    is_stacked: bool

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def rows(self, rows_at_once: int) -> Iterator[tuple[slice, np.ndarray]]:
        """(rows, their values), at most ``rows_at_once`` of the first axis at a time if stacked."""
        if not self.is_stacked:
            yield slice(None), self.parts[0].value(self.dtype)
            return
        for start in range(0, len(self.parts), rows_at_once):
            some = self.parts[start : start + rows_at_once]
            values = [part.value(self.dtype) for part in some]
            yield (
                slice(start, start + len(some)),
                values[0][None] if len(some) == 1 else np.stack(values),
            )

    def materialise(self) -> jax.Array:
        """The whole parameter."""
        value = np.empty(self.shape, self.dtype)
        for rows, some in self.rows(1):
            value[rows] = some
        return jnp.asarray(value)


def _not_finite(value: np.ndarray) -> int:
    """How many elements are NaN or infinite."""
    # NumPy complains of bfloat16's signalling NaNs.
    with np.errstate(invalid="ignore"):
        return value.size - int(np.count_nonzero(np.isfinite(value)))
