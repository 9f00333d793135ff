"""Whether a run has the memory it needs, asked before anything is loaded."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from vidcache_jax.models import wan_dit
from vidcache_jax.models.video_model import VideoModel
from vidcache_jax.planning.analytic import analytic_plan
from vidcache_jax.planning.chips import Chip
from vidcache_jax.planning.plan import GIB, Plan
from vidcache_jax.planning.refusal import refusal_of
from vidcache_jax.sampling.rollout import Rollout
from vidcache_jax.sharding import MODEL_AXES, Layout, make_abstract_mesh


def check_memory(model: VideoModel, rollout: Rollout, batch: int) -> None:
    """Refuses a run that needs more than each of this process's devices has, as far as is known.

    Needed is what the formulas of `analytic_plan` say, and the VAE's weights.

    Args:
      model: may have shapes in place of parameters.
      batch: videos made at once, on all devices together.

    Raises:
      ValueError: it has too little; the message has the numbers and what would help.
    """
    limit = memory_limit(devices_of(rollout.layout))
    if limit is None:
        return
    plan = plan_in(limit, model, rollout, batch)
    if plan.headroom < 0:
        raise ValueError(
            f"this run does not fit: {account(plan)}, {-plan.headroom / GIB:.2f} GiB too little. "
            f"{remedy(plan, model, rollout, batch)}"
        )


def memory_limit(devices: Sequence[Any]) -> int | None:
    """Bytes that a program can have on each device; None where they do not say, as CPUs do not."""
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in devices]
    return min((limit for limit in limits if limit), default=None)


def devices_of(layout: Layout) -> list[Any]:
    """This process's devices of a layout; without a mesh the one that JAX takes."""
    if layout.mesh is None:
        return jax.local_devices()[:1]
    return list(layout.mesh.local_devices or ())


def plan_in(limit: float, model: VideoModel, rollout: Rollout, batch: int) -> Plan:
    """A run's plan where there are so many bytes of memory; of the devices' speed it says nothing.

    The VAE's weights, which every device has, are among the other inputs.
    """
    if rollout.layout.mesh is None:
        rollout = dataclasses.replace(rollout, layout=Layout(make_abstract_mesh(1)))
    device = Chip(tflops=math.nan, hbm_gib=limit / GIB, hbm_gbs=math.nan, link_gbs=math.nan)
    dtype = wan_dit.param_dtype(model.params)
    plan = analytic_plan(rollout, batch, model.latent_size, device, dtype)
    vae = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(model.codec_params))
    return dataclasses.replace(plan, other_inputs=plan.other_inputs + vae)


@contextlib.contextmanager
def memory_accounted(model: VideoModel, rollout: Rollout, batch: int) -> Iterator[None]:
    """Lets a lack of memory within the block be an error for people, with numbers and remedies.

    Args: as of `check_memory`.

    Raises:
      ValueError: memory was lacking.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if (refusal := refusal_of(error)) is None:
            raise
        limit = memory_limit(devices_of(rollout.layout)) or math.inf
        plan = plan_in(limit, model, rollout, batch)
        raise ValueError(
            f"a device ran out of memory ({refusal.splitlines()[0]}). What was finished is kept. "
            f"By formula {account(plan)}. {remedy(plan, model, rollout, batch)}"
        ) from error


def account(plan: Plan) -> str:
    """What a device would hold, and what it can if that is known."""
    gib = lambda nbytes: f"{nbytes / GIB:.2f} GiB"
    has = f", and has {gib(plan.chip.hbm_gib * GIB)}" if math.isfinite(plan.headroom) else ""
    return (
        f"each device would hold {gib(plan.weights)} of weights, {gib(plan.state)} of cache, "
        f"{gib(plan.temporaries)} of temporaries and {gib(plan.other_inputs)} of VAE, prompt and "
        f"noise, together {gib(plan.total)}{has}"
    )


def remedy(plan: Plan, model: VideoModel, rollout: Rollout, batch: int) -> str:
    """What would help a run that does not fit: weights in parts alone, or what always does."""
    layout = rollout.layout
    if plan.headroom < 0 and layout.size(*MODEL_AXES) > 1 and not layout.shard_weights:
        in_parts = dataclasses.replace(layout, shard_weights=True)
        limit = round(plan.chip.hbm_gib * GIB)
        other = dataclasses.replace(rollout, layout=in_parts)
        if plan_in(limit, model, other, batch).headroom >= 0:
            return "--shard-weights would do"
    return (
        "What helps: more heads= in --mesh, --shard-weights with it, a smaller window or another "
        "policy, a lower resolution; `vidcache plan` tells what fits where"
    )
