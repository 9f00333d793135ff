"""A run on chips that need not be there, and the plans that can be made of it."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from vidcache_jax.cache.policy import StackedPolicy
from vidcache_jax.config import RolloutConfig, WanConfig
from vidcache_jax.planning.analytic import analytic_plan
from vidcache_jax.planning.chips import CHIPS
from vidcache_jax.planning.compiled import compiled_plan
from vidcache_jax.planning.plan import Plan
from vidcache_jax.planning.slices import SHAPES, chips_of, mesh_for_one_video
from vidcache_jax.planning.topology import tpu_devices
from vidcache_jax.sampling.rollout import Rollout
from vidcache_jax.sharding import DATA, Layout, make_abstract_mesh, make_mesh, parse_mesh


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """A model and a policy on a slice; as many videos at once as the mesh has places on `data`.

    Attributes:
      topology: a TPU slice or GPUs of one machine (`slices.SHAPES`).
      mesh: such as "data=2,heads=4"; None for `mesh_for_one_video`.
      shard_weights: see `sharding.Layout`.
    """

    config: WanConfig
    policy: StackedPolicy
    topology: str
    latent_size: tuple[int, int]
    mesh: str | None = None
    shard_weights: bool = False
    rollout: RolloutConfig = RolloutConfig()
    dtype: Any = jnp.bfloat16

    @property
    def is_on_tpus(self) -> bool:
        return self.topology.startswith("v")

    @property
    def places(self) -> dict[str, int]:
        """Sizes of the mesh axes."""
        if self.mesh:
            return {DATA: 1, **parse_mesh(self.mesh)}
        rows, columns = self.config.token_grid(*self.latent_size)
        tokens = self.rollout.frames_per_chunk * rows * columns
        return mesh_for_one_video(self.config.num_heads, tokens, chips_of(self.topology)[1])

    def compiled(self) -> Plan:
        """Of the program as compiled for the devices of a TPU slice: a minute or more.

        Raises:
          ValueError: there is no such slice, or the run does not divide over the mesh.
          jax.errors.JaxRuntimeError: the compiler refuses the program, for lack of memory
            (`refusal_of`) or because something is wrong.
        """
        devices = tpu_devices(self.topology)
        return self._plan(compiled_plan, lambda **sizes: make_mesh(**sizes, devices=devices))

    def by_formula(self) -> Plan:
        """Raises ValueError if the topology is not known, or the run does not divide over it."""
        _, count = chips_of(self.topology)
        return self._plan(analytic_plan, functools.partial(make_abstract_mesh, count))

    def in_parts(self) -> "PlannedRun | None":
        """The same with weights in parts; None if they are already, or no two chips share them."""
        _, count = chips_of(self.topology)
        if self.shard_weights or self.places[DATA] == count:
            return None
        return dataclasses.replace(self, shard_weights=True)

    def smallest(self) -> str | None:
        """The smallest slice of the same chips on which one video fits, by formula."""
        chip, _ = chips_of(self.topology)
        for shape in SHAPES[chip]:
            smaller = dataclasses.replace(self, topology=f"{chip}:{shape}", mesh=None)
            if smaller.places[DATA] == chips_of(smaller.topology)[1]:
                # No two chips make the same video.
                smaller = dataclasses.replace(smaller, shard_weights=False)
            if smaller.by_formula().headroom >= 0:
                return smaller.topology
        return None

    def _plan(self, planner: Callable[..., Plan], mesh_of: Callable[..., Any]) -> Plan:
        chip, _ = chips_of(self.topology)
        layout = Layout(mesh_of(**self.places), self.shard_weights)
        rollout = Rollout(self.config, self.rollout, self.policy, layout)
        return planner(rollout, layout.size(DATA), self.latent_size, CHIPS[chip], self.dtype)
