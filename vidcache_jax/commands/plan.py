"""Whether and how a run fits on chips that one does not have yet."""

import dataclasses
import math
import os
from typing import Literal

import jax
import jax.numpy as jnp
import tyro
from jax.experimental import topologies
from rich.console import Console
from rich.table import Table

from vidcache_jax.commands.policy_option import (
    FILE_OPTIONS,
    take_policy_name,
    with_policy_options,
)
from vidcache_jax.config import RolloutConfig, WanConfig
from vidcache_jax.planning.chips import CHIPS
from vidcache_jax.planning.plan import GIB, Plan, plan_rollout
from vidcache_jax.sampling.rollout import Rollout
from vidcache_jax.sharding import Layout, make_mesh, parse_mesh

MODELS = {"wan-1.3b": WanConfig.wan_1_3b(), "wan-14b": WanConfig.wan_14b()}
STRIDE = 8
"""Pixels of a latent row or column (Wan's VAE)."""
FRAMES_A_LATENT = 4
"""Pixel frames of a latent frame after the first."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanArgs:
    """Compile a run for a TPU slice that need not be there, and print what each chip holds.

    Needs the compiler for TPUs: pip install "vidcache-jax[tpu]". Counted is the DiT alone, four
    denoise passes and one commit pass a chunk in bfloat16; text encoder and VAE are not.
    """

    model: Literal["wan-1.3b", "wan-14b"] = "wan-1.3b"
    topology: str = "v5e:2x4"
    """Chip and shape of the slice, as TPU:ROWSxCOLUMNS[xDEPTH]; for example v5p:2x2x2."""
    mesh: str | None = None
    """How the chips are used, for example data=2,heads=4. Without it, for one video."""
    resolution: str = "480x832"
    """Height x width in pixels."""
    shard_weights: bool = False
    """Keep the weights in parts, gathered layer by layer; for models too large for a chip."""


def main(argv: list[str]) -> int:
    """Runs the command; returns 0 if the run fits, 1 if not, 2 for a wrong argument."""
    console = Console()
    try:
        policy_name, rest = take_policy_name(argv)
        args = tyro.cli(
            with_policy_options(PlanArgs, policy_name),
            args=rest,
            prog="vidcache plan",
            registry=FILE_OPTIONS,
        )
        plan = planned(args)
    except (ValueError, OSError, NotImplementedError) as error:
        Console(stderr=True).print(f"vidcache plan: {error}", markup=False)
        return 2
    except jax.errors.JaxRuntimeError as error:
        # The compiler refuses what exceeds the chip, with its own account of it.
        Console(stderr=True).print(f"vidcache plan: does not fit. {_first_lines(error)}")
        return 1
    console.print(table_of(plan, f"{args.model}, {policy_name}, {args.topology}"))
    if plan.headroom < 0:
        console.print(f"does not fit: {-plan.headroom / GIB:.2f} GiB too much on each chip")
        return 1
    return 0


def planned(args) -> Plan:
    """The plan that the arguments ask for.

    Raises:
      ValueError: an argument is not understood, or does not divide over the mesh.
    """
    generation = args.topology.partition(":")[0]
    if generation not in CHIPS or not generation.startswith("v"):
        tpus = ", ".join(name for name in CHIPS if name.startswith("v"))
        raise ValueError(f"topology {args.topology!r} should begin with one of {tpus}")
    config, rollout = MODELS[args.model], RolloutConfig()
    latent_size = latents_of(args.resolution)
    rows, columns = config.token_grid(*latent_size)
    devices = devices_of(args.topology)
    if args.mesh:
        sizes = parse_mesh(args.mesh)
    else:
        tokens = rollout.frames_per_chunk * rows * columns
        sizes = mesh_for_one_video(config.num_heads, tokens, len(devices))
    layout = Layout(make_mesh(**sizes, devices=devices), args.shard_weights)
    static = Rollout(config, rollout, args.policy, layout)
    return plan_rollout(static, layout.size("data"), latent_size, CHIPS[generation], jnp.bfloat16)


def latents_of(resolution: str) -> tuple[int, int]:
    """ "480x832" -> (60, 104).

    Raises:
      ValueError: not two sizes that the VAE divides.
    """
    sizes = resolution.split("x")
    if len(sizes) != 2 or not all(size.isdecimal() for size in sizes):
        raise ValueError(f"resolution {resolution!r} should be HEIGHTxWIDTH, such as 480x832")
    height, width = map(int, sizes)
    if height % STRIDE or width % STRIDE:
        raise ValueError(f"resolution {resolution}: both must be multiples of {STRIDE} pixels")
    return height // STRIDE, width // STRIDE


def devices_of(topology: str) -> list:
    """Devices of a TPU slice, which need not exist.

    Raises:
      ValueError: libtpu is not installed, or it knows no such slice.
    """
    # There is no cloud machine to ask for its chips, and no chip that another process could hold.
    # libtpu reads this when it is loaded.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    try:
        described = topologies.get_topology_desc(topology_name=topology, platform="tpu")
    except Exception as error:  # libtpu has no error type of its own
        raise ValueError(
            f"no TPU slice {topology!r}: {_first_lines(error)}\n"
            'The compiler for TPUs comes with pip install "vidcache-jax[tpu]".'
        ) from error
    return list(described.devices)


def mesh_for_one_video(num_heads: int, num_tokens: int, num_chips: int) -> dict[str, int]:
    """As many chips as divide the heads, then the tokens; the rest makes other videos."""
    heads = math.gcd(num_heads, num_chips)
    sequence = math.gcd(num_tokens // heads, num_chips // heads)
    return {"data": num_chips // (heads * sequence), "heads": heads, "sequence": sequence}


def table_of(plan: Plan, title: str) -> Table:
    table = Table("each chip", "", title=title)
    gib = lambda nbytes: f"{nbytes / GIB:.2f} GiB"
    table.add_row("chips, videos at once", f"{plan.num_chips}, {plan.videos}")
    table.add_row("weights of the DiT", gib(plan.weights))
    table.add_row("cache", gib(plan.state))
    table.add_row("prompt, noise", gib(plan.other_inputs))
    table.add_row("temporaries", gib(plan.temporaries))
    table.add_row("left of its memory", f"{gib(plan.headroom)} of {plan.chip.hbm_gib} GiB")
    table.add_section()
    table.add_row("operations a chunk", f"{plan.work.total / 1e12:.2f} TFLOP")
    table.add_row("moved by collectives", f"{plan.moved / 1e9:.3f} GB")
    table.add_row("chunk by the roofline", f"{1e3 * plan.seconds:.0f} ms")
    fps = plan.frames_per_second(FRAMES_A_LATENT)
    table.add_row("all videos by the roofline", f"{fps:.1f} frames/s")
    return table


def _first_lines(error: Exception) -> str:
    return "\n".join(str(error).strip().splitlines()[:6])
