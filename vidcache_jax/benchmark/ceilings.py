"""What the device can do at most, measured: matrix products and copies."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vidcache_jax.benchmark.timing import medians

_SIZES = {"cpu": (1024, 2**26)}
_ACCELERATOR = (8192, 2**30)
"""Rows and columns of the factors; bytes that are copied."""


class Product(NamedTuple):
    """A product of two random square matrices, to be timed in turns with what it is a limit of.

    Clocks change as a chip warms up, and so does a machine's load.
    """

    call: Callable[[], jax.Array]
    size: int

    def rate(self, seconds: float) -> float:
        """FLOP/s, a multiply-add as two."""
        return 2 * self.size**3 / seconds


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ceilings:
    """Attributes:
    matmul_size: rows and columns of two square factors.
    matmul: FLOP/s of their product.
    copy: bytes/s, those read and those written.
    """

    matmul_size: int
    matmul: float
    copy: float


def matrix_product(dtype: Any) -> Product:
    size, _ = _SIZES.get(jax.devices()[0].platform, _ACCELERATOR)
    one, two = (jax.random.normal(jax.random.key(i), (size, size), dtype) for i in range(2))
    multiply = jax.jit(jnp.matmul)
    return Product(lambda: multiply(one, two), size)


def measure_ceilings(product: Product, dtype: Any, rounds: int) -> Ceilings:
    _, nbytes = _SIZES.get(jax.devices()[0].platform, _ACCELERATOR)
    long = jax.random.normal(jax.random.key(2), (nbytes // jnp.dtype(dtype).itemsize,), dtype)
    negative = jax.jit(jnp.negative)
    seconds = medians({"product": product.call, "copy": lambda: negative(long)}, rounds)
    return Ceilings(
        matmul_size=product.size,
        matmul=product.rate(seconds["product"]),
        copy=2 * long.nbytes / seconds["copy"],
    )
