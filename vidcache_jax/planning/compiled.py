"""A plan from the program itself, compiled for chips that need not be there."""

from typing import Any

import jax

from vidcache_jax.planning.chips import Chip
from vidcache_jax.planning.collectives import collectives
from vidcache_jax.planning.cycles import estimated_cycles
from vidcache_jax.planning.inputs import chunk_inputs
from vidcache_jax.planning.plan import Plan, plan_of
from vidcache_jax.sampling.rollout import Rollout


def compiled_plan(
    rollout: Rollout, batch: int, latent_size: tuple[int, int], chip: Chip, dtype: Any
) -> Plan:
    """Plans a rollout on the devices of its layout's mesh, for which it is compiled.

    Args:
      batch: videos made at once, on all chips together.

    Raises:
      ValueError: videos, heads or tokens do not divide over the mesh.
      jax.errors.JaxRuntimeError: the compiler refuses the program, for lack of memory
        (`refusal_of`) or because something is wrong.
    """
    inputs = chunk_inputs(rollout, batch, latent_size, dtype)

    def step(params, state, *others):
        after, result = rollout.step(params, inputs.state_of(state), *others)
        return jax.tree.leaves(after), result.latents

    others = (inputs.text, inputs.noise, inputs.renoise)
    lowered = jax.jit(step, donate_argnums=1).lower(inputs.params, inputs.state, *others)
    compiled = lowered.compile()
    memory = compiled.memory_analysis()
    if memory is None:
        raise RuntimeError("this compiler does not tell what memory a program takes")
    made = memory.output_size_in_bytes - memory.alias_size_in_bytes
    hlo = compiled.as_text() or ""
    return plan_of(
        rollout,
        inputs,
        chip,
        temporaries=memory.temp_size_in_bytes + made,
        traffic=tuple(collectives(hlo)),
        compiler_seconds=estimated_cycles(hlo) / (chip.clock_ghz * 1e9),
    )
