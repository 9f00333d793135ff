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
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.shape}".encode())
        places = np.linspace(0, leaf.size - 1, _SAMPLES).round().astype(np.int64)
        values = leaf[np.unravel_index(places, leaf.shape)]
        digest.update(np.asarray(values.astype(jnp.bfloat16)).tobytes())
    return digest.hexdigest()[:16]
