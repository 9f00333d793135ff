"""The arguments of a chunk program as shapes, each where the layout puts it."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vidcache_jax.models import wan_dit
from vidcache_jax.sampling.rollout import Rollout, RolloutState
from vidcache_jax.sharding import AXIS_OF, DATA, axis_letters


@dataclasses.dataclass(frozen=True)
class ChunkInputs:
    """What `Rollout.step` takes, for ``batch`` videos; ``state`` as its leaves.

    Attributes:
      state_of: puts leaves together again.
    """

    params: Any
    state: list[jax.ShapeDtypeStruct]
    state_of: Callable[[Any], RolloutState]
    text: Any
    noise: jax.ShapeDtypeStruct
    renoise: jax.ShapeDtypeStruct


def chunk_inputs(
    rollout: Rollout, batch: int, latent_size: tuple[int, int], dtype: Any
) -> ChunkInputs:
    """Shapes and shardings; nothing is allocated or compiled, the mesh may be an abstract one.

    Raises:
      ValueError: videos, heads or tokens do not divide over the mesh.
    """
    layout, config = rollout.layout, rollout.config
    params = wan_dit.abstract_params(config, dtype)
    params = jax.tree.map(_placed, params, layout.params(params))
    text = wan_dit.abstract_text(config, batch, dtype)
    text = jax.tree.map(lambda leaf: _placed(leaf, layout.named(None, DATA)), text)
    shape = (batch, rollout.rollout.frames_per_chunk, *latent_size, config.in_dim)
    later = (len(rollout.rollout.denoise_timesteps) - 1, *shape)
    structures, letters = [], []

    def leaves():
        state = rollout.empty(batch, latent_size, dtype)
        structures.append(jax.tree.structure(state))
        letters.extend(axis_letters(state))
        return jax.tree.leaves(state)

    state = [
        _placed(leaf, layout.named(*map(AXIS_OF.get, own)))
        for leaf, own in zip(jax.eval_shape(leaves), letters, strict=True)
    ]
    return ChunkInputs(
        params,
        state,
        lambda leaves: jax.tree.unflatten(structures[0], leaves),
        text,
        noise=jax.ShapeDtypeStruct(shape, jnp.float32, sharding=layout.named(DATA)),
        renoise=jax.ShapeDtypeStruct(later, jnp.float32, sharding=layout.named(None, DATA)),
    )


def nbytes_on_a_chip(tree: Any) -> int:
    """Bytes of one chip's part of a tree of placed shapes."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * jnp.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _placed(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
