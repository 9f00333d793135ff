"""A plan by formulas alone: for GPUs, and to find the smallest slice without compiling each."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from vidcache_jax.planning.chips import Chip
from vidcache_jax.planning.collectives import Collective
from vidcache_jax.planning.inputs import ChunkInputs, chunk_inputs, nbytes_on_a_chip
from vidcache_jax.planning.plan import Plan, plan_of
from vidcache_jax.planning.warm_up import warm_up_temporaries, warm_up_traffic
from vidcache_jax.sampling.rollout import Rollout
from vidcache_jax.sharding import DATA, HEADS, MODEL_AXES, SEQUENCE


def analytic_plan(
    rollout: Rollout, batch: int, latent_size: tuple[int, int], chip: Chip, dtype: Any
) -> Plan:
    """Plans a rollout on its layout's mesh, which may be abstract.

    Args:
      batch: videos made at once, on all chips together.

    Raises:
      ValueError: videos, heads or tokens do not divide over the mesh.
    """
    inputs = chunk_inputs(rollout, batch, latent_size, dtype)
    tokens = _tokens_of_a_place(rollout, batch, latent_size)
    return plan_of(
        rollout,
        inputs,
        chip,
        temporaries=chunk_temporaries(rollout, tokens, inputs, dtype),
        traffic=chunk_traffic(rollout, tokens, inputs, dtype),
        compiler_seconds=None,
    )


def chunk_traffic(
    rollout: Rollout, tokens: int, inputs: ChunkInputs, dtype: Any
) -> tuple[Collective, ...]:
    """Collectives of a chip in a chunk, those of ``sharding`` (its module docstring) and `warm_up`.

    Args:
      tokens: of a chunk, of all videos of a place on ``data``.
    """
    config, layout = rollout.config, rollout.layout
    times = config.num_layers * (len(rollout.rollout.denoise_timesteps) + 1)
    chunk = tokens * config.dim * jnp.dtype(dtype).itemsize
    found = []
    if layout.size(*MODEL_AXES) > 1:
        found.append(Collective("all-to-all", chunk // layout.size(*MODEL_AXES), 4 * times))
    if layout.size(SEQUENCE) > 1:
        found.append(Collective("all-gather", chunk // layout.size(HEADS), 3 * times))
    found += [
        Collective("all-gather", math.prod(leaf.shape[1:]) * leaf.dtype.itemsize, times)
        for leaf in jax.tree.leaves(inputs.params)
        if not leaf.sharding.is_fully_replicated
    ]
    return (*found, *warm_up_traffic(rollout, tokens, inputs, dtype))


def chunk_temporaries(rollout: Rollout, tokens: int, inputs: ChunkInputs, dtype: Any) -> int:
    """Bytes of a pass's activations on a chip, with nothing kept that could be made again.

    With t tokens on a chip (t' of a head group), d the width and f that of the feed-forward, b
    bytes a number and 4 in float32: residual and norm 8 t d, feed-forward 2 b t f, the four
    of q, k, v and their result 4 (b + 4) t' d / heads; and the rotated copy of the cached keys of
    all layers (`cache.working_copy`); and what ISPA's warm-up takes.
    """
    config, layout = rollout.config, rollout.layout
    size = jnp.dtype(dtype).itemsize
    own = tokens // layout.size(*MODEL_AXES)
    heads = tokens // layout.size(HEADS)
    # Of the state's arrays the keys, or the values, are the largest in the model's precision.
    cached = [leaf for leaf in inputs.state if leaf.ndim == 5 and leaf.dtype == dtype]
    keys = max((nbytes_on_a_chip([leaf]) for leaf in cached), default=0)
    return (
        8 * own * config.dim
        + 2 * size * own * config.ffn_dim
        + 4 * (size + 4) * heads * config.dim
        + keys
        + warm_up_temporaries(rollout, inputs)
    )


def _tokens_of_a_place(rollout: Rollout, batch: int, latent_size: tuple[int, int]) -> int:
    """Tokens of a chunk, of all videos of a place on ``data``."""
    rows, columns = rollout.config.token_grid(*latent_size)
    videos = batch // rollout.layout.size(DATA)
    return videos * rollout.rollout.frames_per_chunk * rows * columns
