"""Whether and how a run fits on chips that one does not have yet."""

import dataclasses
from typing import Literal

import jax
import tyro
from rich.console import Console
from rich.table import Table

from vidcache_jax.commands.policy_option import (
    FILE_OPTIONS,
    take_policy_name,
    with_policy_options,
)
from vidcache_jax.config import WAN
from vidcache_jax.planning.plan import GIB, Plan
from vidcache_jax.planning.planned_run import PlannedRun

STRIDE = 8
"""Pixels of a latent row or column (Wan's VAE)."""
FRAMES_A_LATENT = 4
"""Pixel frames of a latent frame after the first."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanArgs:
    """Say what a run takes on chips that need not be there: memory, traffic, time.

    For a TPU slice the chunk program is compiled, which takes a minute or more and the compiler
    for TPUs: pip install "vidcache-jax[tpu]". For GPUs, and with --no-compile, formulas must do.
    Counted is the DiT alone, four denoise passes and one commit pass a chunk in bfloat16; text
    encoder and VAE are not.
    """

    model: Literal["wan-1.3b", "wan-14b"] = "wan-1.3b"
    topology: str = "v5e:2x4"
    """A TPU slice, as v5e:2x4 or v5p:2x2x2, or GPUs of one machine, as h100:8."""
    mesh: str | None = None
    """How the chips are used, for example data=2,heads=4. Without it, for one video."""
    resolution: str = "480x832"
    """Height x width in pixels."""
    shard_weights: bool = False
    """Keep the weights in parts, gathered layer by layer; for models too large for a chip."""
    compile: bool = True
    """Compile the program for a TPU slice."""


def main(argv: list[str]) -> int:
    """Runs the command; returns 0 if the run fits, 1 if not, 2 for a wrong argument."""
    console, errors = Console(), Console(stderr=True)
    try:
        policy_name, rest = take_policy_name(argv)
        args = tyro.cli(
            with_policy_options(PlanArgs, policy_name),
            args=rest,
            prog="vidcache plan",
            registry=FILE_OPTIONS,
        )
        run = PlannedRun(
            config=WAN[args.model],
            policy=args.policy,
            topology=args.topology,
            latent_size=latents_of(args.resolution),
            mesh=args.mesh,
            shard_weights=args.shard_weights,
        )
        plan, refusal, smallest = run.by_formula(), None, run.smallest()
        if args.compile and run.is_on_tpus:
            try:
                plan = run.compiled()
            except jax.errors.JaxRuntimeError as error:
                # The compiler refuses what exceeds the chip, with its own account of it.
                refusal = f"does not fit: {_first_lines(error)}"
    except (ValueError, OSError, NotImplementedError) as error:
        errors.print(f"vidcache plan: {error}", markup=False)
        return 2
    console.print(table_of(plan, smallest, f"{args.model}, {policy_name}, {args.topology}"))
    if refusal is None and plan.headroom < 0:
        refusal = f"does not fit: {-plan.headroom / GIB:.2f} GiB too much on each chip"
    if refusal is not None:
        console.print(refusal, markup=False)
    return 0 if refusal is None else 1


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


def table_of(plan: Plan, smallest: str | None, title: str) -> Table:
    table = Table("each chip", "", title=title)
    gib = lambda nbytes: f"{nbytes / GIB:.2f} GiB"
    by_formula = "" if plan.compiler_seconds is not None else ", by formula"
    table.add_row("chips, videos at once", f"{plan.num_chips}, {plan.videos}")
    table.add_row("weights of the DiT", gib(plan.weights))
    table.add_row("cache", gib(plan.state))
    table.add_row("prompt, noise", gib(plan.other_inputs))
    table.add_row(f"temporaries{by_formula}", gib(plan.temporaries))
    table.add_row("left of its memory", f"{gib(plan.headroom)} of {plan.chip.hbm_gib} GiB")
    table.add_row("smallest slice for one video, by formula", smallest or "none")
    table.add_section()
    table.add_row("operations a chunk", f"{plan.work.total / 1e12:.2f} TFLOP")
    table.add_row(f"moved by collectives{by_formula}", f"{plan.moved / 1e9:.3f} GB")
    table.add_row("chunk by the roofline", f"{1e3 * plan.seconds:.0f} ms")
    if plan.compiler_seconds is not None:
        parts = plan.compiler_seconds, plan.attention_seconds, plan.link_seconds
        rest, attention, links = (f"{1e3 * part:.0f}" for part in parts)
        table.add_row(
            "chunk by the compiler's estimates",
            f"{1e3 * sum(parts):.0f} ms = {rest} + {attention} attention + {links} links",
        )
    fps = plan.frames_per_second(FRAMES_A_LATENT)
    table.add_row("all videos by the roofline", f"{fps:.1f} frames/s")
    return table


def _first_lines(error: Exception) -> str:
    return "\n".join(str(error).strip().splitlines()[:6])
