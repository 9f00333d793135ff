"""What a compiled program does with a cache, read from its optimised HLO."""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp

_COPY = re.compile(r"\s(?:copy|copy-start)\(")
_SHAPE = re.compile(r"\b([a-z])\w*\[([\d,]*)\]")


def cache_sized_copies(compiled: Any, cache: Any) -> list[str]:
    """Copy instructions of a program whose result is as large as a buffer of the cache.

    A donated cache that is updated in place needs none. Every computation of the module is
    searched, bodies of loops and fusions included. Buffers smaller than an eighth of the
    cache's largest (frame numbers, statistics) may be copied.

    Args:
      compiled: ``jax.jit(f).lower(...).compile()``, or its HLO text.
      cache: the cache that the program updates, stacked over layers as it takes it (arrays or
        abstract arrays). Copies are recognised by their number of elements, whole numbers or
        not, so choose sizes that no other tensor of the program shares.

    Returns:
      The offending lines of HLO.
    """
    text = compiled if isinstance(compiled, str) else compiled.as_text()
    nbytes = [_nbytes(leaf) for leaf in jax.tree.leaves(cache)]
    large = {
        (math.prod(leaf.shape), not jnp.issubdtype(leaf.dtype, jnp.floating))
        for leaf, size in zip(jax.tree.leaves(cache), nbytes, strict=True)
        if 8 * size >= max(nbytes)
    }
    return [line.strip() for line in text.splitlines() if large & _copied_sizes(line)]


def _nbytes(leaf) -> int:
    return math.prod(leaf.shape) * jnp.dtype(leaf.dtype).itemsize


def _copied_sizes(line: str) -> set[tuple[int, bool]]:
    """Of each array that a line of HLO copies, elements and whether they are whole numbers or bits.

    A line is ``%name = f32[2,3]{1,0} copy(...)`` or ``%name = (f32[2,3], ...) copy-start(...)``;
    other operations copy nothing.
    """
    _, equals, right = line.partition(" = ")
    operation = _COPY.search(right)
    if not equals or operation is None:
        return set()
    return {
        (math.prod(int(size) for size in dims.split(",") if size), kind in "sup")
        for kind, dims in _SHAPE.findall(right[: operation.start()])
    }
