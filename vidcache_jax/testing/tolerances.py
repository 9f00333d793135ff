"""The one table of tolerances. Loosening an entry needs a comment with the measured error."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

ROLLOUT_ON_A_MESH = "rollout on a mesh"
TOLERANCES: Mapping[str, Mapping[str, float]] = {
    "float32": {"atol": 1e-5, "rtol": 1e-5},
    "bfloat16": {"atol": 2e-2, "rtol": 1e-2},
    "float16": {"atol": 5e-3, "rtol": 1e-3},
    # A rollout of some chunks in float32 with sums over heads and tokens in another order: on a
    # mesh, or under `pmap`. Measured 1e-6 in latents, as much of the largest number in a cache.
    ROLLOUT_ON_A_MESH: {"atol": 2e-5, "rtol": 0.0},
}
"""Per dtype of the coarsest operand of a computation, for values of order one."""


def tolerance(dtype: Any) -> dict[str, float]:
    """``{"atol": ..., "rtol": ...}`` for NumPy, JAX or chex comparisons.

    Args:
      dtype: of the coarsest operand, or another entry of the table by its name.

    Raises:
      ValueError: the table has no such dtype.
    """
    name = dtype if dtype == ROLLOUT_ON_A_MESH else jnp.dtype(dtype).name
    if name not in TOLERANCES:
        raise ValueError(f"no tolerance for {name}; there are {[*TOLERANCES]}")
    return dict(TOLERANCES[name])


def assert_close(
    actual: Any, expected: Any, dtype: Any = jnp.float32, message: str = "arrays"
) -> None:
    """Arrays equal within the table's entry for ``dtype``: ``|a - e| <= atol + rtol |e|``.

    Raises:
      AssertionError: shapes differ, or values by more than that.
    """
    actual, expected = (np.asarray(x).astype(np.float64) for x in (actual, expected))
    if actual.shape != expected.shape:
        raise AssertionError(f"{message}: shapes {actual.shape} and {expected.shape}")
    try:
        limits = tolerance(dtype)
        np.testing.assert_allclose(actual, expected, atol=limits["atol"], rtol=limits["rtol"])
    except AssertionError as error:
        raise AssertionError(f"{message}: {error}") from None


def same_bits(first: Any, second: Any) -> bool:
    """Equal in dtype, shape and every bit: NaN equals itself, 0.0 does not equal -0.0."""
    first, second = np.asarray(first), np.asarray(second)
    return (
        first.dtype == second.dtype
        and first.shape == second.shape
        and first.tobytes() == second.tobytes()
    )
