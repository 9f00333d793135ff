"""Which versions of Triton, jax-triton and JAX go together, asked before a kernel is imported.

    jax                  jax-triton   triton
    0.10.2 to 0.12.0.1   0.3.1        3.6.0 to 3.9.0

At both ends the kernels have been compiled for sm_90 on a machine without a GPU, those of scoring
with JAX 0.10.2 alone. jax-triton 0.4 hands a kernel what it writes in place once, 0.3 as an
argument and as a result. Of JAX's support for CUDA, ``jax-cuda13-plugin`` is needed, or 12;
``pip install -e ".[cuda]"`` brings it.
"""

import importlib
from importlib import metadata

from vidcache_jax.ops.implementations import Implementation

JAX_TRITON, LEAST_TRITON = "0.3.1", (3, 6)
REMEDY = 'pip install -e ".[cuda,triton]"'


def reason_against_triton() -> str | None:
    """Why there can be no kernel in Triton here, None if nothing is known against it."""
    try:
        jax_triton, triton = metadata.version("jax-triton"), metadata.version("triton")
    except metadata.PackageNotFoundError as error:
        return f"{error.name} is not installed; {REMEDY} brings it"
    if jax_triton != JAX_TRITON or tuple(map(int, triton.split(".")[:2])) < LEAST_TRITON:
        return (
            f"jax-triton {jax_triton} and triton {triton} do not do; jax-triton {JAX_TRITON} and "
            f"triton {'.'.join(map(str, LEAST_TRITON))} or newer do: {REMEDY}"
        )
    try:
        importlib.import_module("jax_triton")
    except ImportError as error:
        return f"jax-triton cannot be imported ({error}); {REMEDY} brings what it needs"
    return None


def in_triton(module: str, name: str) -> Implementation:
    """A function of a module that imports Triton, chosen by name alone; imported when called."""

    def call(*arguments, **options):
        return getattr(importlib.import_module(module), name)(*arguments, **options)

    return Implementation(call, lambda *_: reason_against_triton())
