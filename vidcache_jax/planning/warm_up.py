"""What ISPA's warm-up takes on a mesh, by formula: it multiplies streams of all heads.

In every pass each chip gathers the two streams of its tokens over ``heads``, makes the columns of
the three products that belong to its own heads, and sums them over ``sequence``. When the chunk is
made the columns are put together again: every chip keeps the products whole.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from vidcache_jax.cache import ISPA
from vidcache_jax.models import wan_dit
from vidcache_jax.planning.collectives import Collective
from vidcache_jax.planning.inputs import ChunkInputs
from vidcache_jax.sampling.rollout import Rollout
from vidcache_jax.sharding import DATA, HEADS, SEQUENCE


def warm_up_traffic(
    rollout: Rollout, tokens: int, inputs: ChunkInputs, dtype: Any
) -> tuple[Collective, ...]:
    """Collectives of a chip in a chunk; none for other policies than ISPA.

    Args:
      tokens: of a chunk, of all videos of a place on ``data``.
    """
    config, layout, policy = rollout.config, rollout.layout, rollout.policy
    if not isinstance(policy, ISPA):
        return ()
    steps = len(rollout.rollout.denoise_timesteps)
    passes = {"all": steps + 1, "denoise": steps, "context": 1}[policy.passes]
    times, products, found = config.num_layers * passes, _products(rollout, inputs), []
    if layout.size(HEADS) > 1:
        stream = tokens // layout.size(SEQUENCE) * config.dim * jnp.dtype(dtype).itemsize
        found += [Collective("all-gather", stream, 2 * times)]
        found += [Collective("all-gather", nbytes, 1) for nbytes in products]
    if layout.size(SEQUENCE) > 1:
        columns = sum(products) // config.num_layers // layout.size(HEADS)
        found += [Collective("all-reduce", columns, times)]
    return tuple(found)


def warm_up_temporaries(rollout: Rollout, inputs: ChunkInputs) -> int:
    """Bytes of the products put together, beside those that the state holds."""
    return sum(_products(rollout, inputs)) if rollout.layout.size(HEADS) > 1 else 0


def _products(rollout: Rollout, inputs: ChunkInputs) -> list[int]:
    """Bytes of each product of all layers, of the videos of a place on ``data``."""
    policy, (batch, frames, rows, columns, _) = rollout.policy, inputs.noise.shape
    if not isinstance(policy, ISPA):
        return []
    videos = batch // rollout.layout.size(DATA)
    spec = wan_dit.cache_spec(rollout.config, videos, (rows, columns), frames, jnp.float32)
    layers = rollout.config.num_layers
    leaves = jax.eval_shape(lambda: jax.tree.leaves(policy.init_statistics(spec, layers)))
    return [math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves]
