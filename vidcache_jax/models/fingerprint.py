"""Tells models apart by their parameters, in a line of text."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np

from vidcache_jax.array_typing import Params

_SAMPLES = 64


def fingerprint(params: Params) -> str:
    """16 hexadecimal digits: SHA-256 of every parameter's name, shape and 64 of its values.

    The values lie evenly over the parameter and are rounded to bfloat16, so that a model has the
    same fingerprint in whichever dtype it is loaded, and 14 billion numbers need not be read.
    """
    digest = hashlib.sha256()
    named = jax.tree_util.tree_leaves_with_path(params)
    for (path, leaf), values in zip(named, _samples([leaf for _, leaf in named]), strict=True):
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.shape}".encode())
        digest.update(np.asarray(values).tobytes())
    return digest.hexdigest()[:16]


# One program: one for each parameter takes seconds to compile.
@jax.jit
def _samples(leaves: list[jax.Array]) -> list[jax.Array]:
    def sample(leaf: jax.Array) -> jax.Array:
        places = np.linspace(0, leaf.size - 1, _SAMPLES).round().astype(np.int64)
        return leaf[np.unravel_index(places, leaf.shape)].astype(jnp.bfloat16)

    return [sample(leaf) for leaf in leaves]
