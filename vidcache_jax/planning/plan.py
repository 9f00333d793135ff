"""Compiles the chunk program of a run for chips that need not be there, and adds up."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from vidcache_jax.models import wan_dit
from vidcache_jax.planning.chips import Chip
from vidcache_jax.planning.collectives import Collective, collectives
from vidcache_jax.planning.counts import Work, chunk_work
from vidcache_jax.sampling.rollout import Rollout
from vidcache_jax.sharding import DATA, MODEL_AXES

GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What one chip holds and does for a chunk of each of its videos.

    Attributes:
      weights, state: bytes, of the DiT and of the rollout's state: the policy's cache.
      other_inputs: prompt keys and values, noise.
      temporaries: bytes that the program needs besides, as the compiler has laid them out.
      work: operations of this chip.
      traffic: collectives of this chip.
    """

    chip: Chip
    num_chips: int
    videos: int
    frames_per_chunk: int
    weights: int
    state: int
    other_inputs: int
    temporaries: int
    work: Work
    traffic: tuple[Collective, ...]

    @property
    def total(self) -> int:
        return self.weights + self.state + self.other_inputs + self.temporaries

    @property
    def headroom(self) -> float:
        """Bytes of the chip's memory that are left; negative if the run does not fit."""
        return self.chip.hbm_gib * GIB - self.total

    @property
    def moved(self) -> int:
        """Bytes of collectives a chunk."""
        return sum(each.nbytes * each.times for each in self.traffic)

    @property
    def seconds(self) -> float:
        """Roofline of a chunk: matrix units, then links, nothing hidden behind the other."""
        peak, links = self.chip.tflops * 1e12, self.chip.link_gbs * 1e9
        linear = self.work.linear / (peak * self.chip.linear)
        attention = self.work.attention / (peak * self.chip.attention)
        return linear + attention + self.moved / links

    def frames_per_second(self, pixel_frames: int) -> float:
        """Pixel frames a second of all videos together, of ``pixel_frames`` a latent frame."""
        return self.videos * self.frames_per_chunk * pixel_frames / self.seconds


def plan_rollout(
    rollout: Rollout, batch: int, latent_size: tuple[int, int], chip: Chip, dtype: Any
) -> Plan:
    """Plans a rollout on the devices of its layout's mesh, for which it is compiled.

    Args:
      batch: videos made at once, on all chips together.

    Raises:
      ValueError: videos, heads or tokens do not divide over the mesh.
    """
    layout, config = rollout.layout, rollout.config
    state, treedef = _abstract_state(rollout, batch, latent_size, dtype)
    params = wan_dit.abstract_params(config, dtype)
    params = jax.tree.map(_placed, params, layout.params(params))
    text = wan_dit.abstract_text(config, batch, dtype)
    text = jax.tree.map(lambda leaf: _placed(leaf, layout.named(None, DATA)), text)
    shape = (batch, rollout.rollout.frames_per_chunk, *latent_size, config.in_dim)
    later = (len(rollout.rollout.denoise_timesteps) - 1, *shape)
    noise = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=layout.named(DATA))
    renoise = jax.ShapeDtypeStruct(later, jnp.float32, sharding=layout.named(None, DATA))

    def step(params, state, *inputs):
        after, result = rollout.step(params, jax.tree.unflatten(treedef, state), *inputs)
        return jax.tree.leaves(after), result.latents

    lowered = jax.jit(step, donate_argnums=1).lower(params, state, text, noise, renoise)
    compiled = lowered.compile()
    memory = compiled.memory_analysis()
    if memory is None:
        raise RuntimeError("this compiler does not tell what memory a program takes")
    made = memory.output_size_in_bytes - memory.alias_size_in_bytes
    frames = attended_frames(rollout, latent_size)
    work = chunk_work(config, rollout.rollout, latent_size, frames)
    num_chips = layout.size(DATA, *MODEL_AXES)
    share = batch / num_chips
    return Plan(
        chip=chip,
        num_chips=num_chips,
        videos=batch,
        frames_per_chunk=rollout.rollout.frames_per_chunk,
        weights=_nbytes(params),
        state=_nbytes(state),
        other_inputs=_nbytes((text, noise, renoise)),
        temporaries=memory.temp_size_in_bytes + made,
        work=Work(work.linear * share, work.attention * share),
        traffic=tuple(collectives(compiled.as_text() or "")),
    )


def attended_frames(rollout: Rollout, latent_size: tuple[int, int]) -> float:
    """Latent frames that the program computes attention over, the chunk's own included.

    A policy's slots, of which those that the chunk displaces and its own are as many.
    """
    config, frames = rollout.config, rollout.rollout.frames_per_chunk
    spec = wan_dit.cache_spec(config, 1, latent_size, frames, jnp.float32)
    policy: Any = rollout.policy

    def keys():
        start = jnp.zeros((), jnp.int32)
        return policy.read(policy.init(spec), start, frames).k

    return jax.eval_shape(keys).shape[2] / spec.tokens_per_frame


def _abstract_state(rollout: Rollout, batch: int, latent_size: tuple[int, int], dtype: Any):
    """(leaves, tree structure) of the state, where the compiler puts it."""
    structures = []

    def leaves():
        state = rollout.empty(batch, latent_size, dtype)
        structures.append(jax.tree.structure(state))
        return jax.tree.leaves(state)

    lowered = jax.jit(leaves).lower()
    shardings = jax.tree.leaves(lowered.compile().output_shardings)
    shapes = jax.tree.leaves(lowered.out_info)
    return [*map(_placed, shapes, shardings)], structures[0]


def _placed(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _nbytes(tree: Any) -> int:
    """Bytes of one chip's part."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * jnp.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(tree)
    )
