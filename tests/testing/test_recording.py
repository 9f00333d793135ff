"""A recording policy does what the policy does, and keeps what it was shown."""

import chex
import jax
import numpy as np

from tests.cache.against_oracle import tiny_spec
from vidcache_jax.cache import FutureForcing
from vidcache_jax.testing import Recording, Trial


def test_does_the_same_and_keeps_queries_and_view():
    policy, spec = FutureForcing(5, delta_max=2), tiny_spec(3)
    alone, recorded = Trial(policy, spec), Trial(Recording(policy), spec)
    history = alone.random_history(0, 4)
    (leaves, records), (kept, same) = alone.run(history), recorded.run(history)
    chex.assert_trees_all_equal(records, same)
    record = jax.tree.unflatten(recorded.treedef, kept)
    chex.assert_trees_all_equal(jax.tree.leaves(record.cache), leaves)
    np.testing.assert_array_equal(record.q, history[-1][0])
    chex.assert_trees_all_equal(
        [getattr(record.view, name) for name in ("k", "v", "position", "visible")],
        [getattr(records[-1].after, name) for name in ("k", "v", "position", "visible")],
    )
