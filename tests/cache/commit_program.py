"""A policy's commit as a compiled program with a donated cache."""

import jax
import numpy as np

from vidcache_jax.cache import CachePolicy, CacheSpec, Chunk
from vidcache_jax.testing import random_chunk


def compile_donated_commit(policy: CachePolicy, spec: CacheSpec):
    """(compiled program, the cache it was compiled for)."""
    cache = policy.init(spec)
    leaves, treedef = jax.tree.leaves(cache), jax.tree.structure(cache)

    def commit(leaves, *chunk):
        return jax.tree.leaves(policy.commit(jax.tree.unflatten(treedef, leaves), Chunk(*chunk)))

    chunk = jax.tree.leaves(random_chunk(np.random.default_rng(0), spec))
    return jax.jit(commit, donate_argnums=0).lower(leaves, *chunk).compile(), cache
