"""Whether and how a run fits on chips that one does not have yet."""

import collections
import dataclasses
from typing import Literal

import jax
import tyro
from rich.console import Console
from rich.table import Table

from vidcache_jax.benchmark.wan import paper_roles
from vidcache_jax.cache import CachePolicy, FullCache, HeadForcing
from vidcache_jax.commands.policy_option import (
    FILE_OPTIONS,
    fitted,
    states_capacity,
    take_policy_name,
    with_policy_options,
)
from vidcache_jax.config import WAN, RolloutConfig
from vidcache_jax.models.wan_vae import WanVAE
from vidcache_jax.pipeline import FRAMES_PER_SECOND
from vidcache_jax.planning.plan import GIB, Plan
from vidcache_jax.planning.planned_run import PlannedRun
from vidcache_jax.planning.refusal import first_lines, refusal_of
from vidcache_jax.sampling.rollout import Rollout
from vidcache_jax.sampling.session import chunks_in

STRIDE = WanVAE().spatial_stride
"""Pixels of a latent row or column."""
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
    seconds: float | None = None
    """Length of the video, which a full cache must hold."""
    shard_weights: bool = False
    """Keep the weights in parts, gathered layer by layer; for models too large for a chip."""
    compile: bool = True
    """Compile the program for a TPU slice."""


def main(argv: list[str]) -> int:
    """Runs the command; returns the exit status.

    0 if the run fits, 1 if not, 2 for a wrong argument or if the compiler fails.
    """
    console, errors = Console(), Console(stderr=True)
    try:
        policy_name, rest = take_policy_name(argv)
        args = tyro.cli(
            with_policy_options(PlanArgs, policy_name),
            args=rest,
            prog="vidcache plan",
            registry=FILE_OPTIONS,
        )
        policy = policy_of(args, args.policy, rest)
        run = PlannedRun(
            config=WAN[args.model],
            policy=policy,
            topology=args.topology,
            latent_size=latents_of(args.resolution),
            mesh=args.mesh,
            shard_weights=args.shard_weights,
        )
        plan, refusal = run.by_formula(), None
        if args.compile and run.is_on_tpus:
            try:
                plan = run.compiled()
            except jax.errors.JaxRuntimeError as error:
                if (refusal := refusal_of(error)) is None:
                    raise
        smallest = run.smallest()
    except (ValueError, OSError, NotImplementedError) as error:
        errors.print(f"vidcache plan: {error}", markup=False)
        return 2
    except jax.errors.JaxRuntimeError as error:
        errors.print(
            "vidcache plan: the compiler failed, and whether the run fits is not known: "
            f"{first_lines(error)}",
            markup=False,
        )
        return 2
    if isinstance(policy, HeadForcing) and args.policy != policy:
        console.print("Without --roles: in the shares that Head Forcing's paper found.")
    console.print(table_of(plan, smallest, f"{args.model}, {policy_name}, {args.topology}", policy))
    fits = refusal is None and plan.headroom >= 0
    if not fits:
        console.print(f"does not fit: {reason(run, plan, refusal)}", markup=False)
    return 0 if fits else 1


def policy_of(args: PlanArgs, policy: CachePolicy, given: list[str]) -> CachePolicy:
    """The policy, with what follows from the length and the model.

    Raises:
      ValueError: how much a full cache is to hold is not said, or less than the video.
    """
    config, rollout = WAN[args.model], RolloutConfig()
    if args.seconds is None:
        if isinstance(policy, FullCache) and not states_capacity(given):
            raise ValueError(
                "a full cache holds the whole video: say its length by --seconds or --capacity"
            )
        return fitted(policy, True, 0, paper_roles(config))
    pixels = lambda chunks: WanVAE().num_pixel_frames(chunks * rollout.frames_per_chunk)
    chunks = chunks_in(args.seconds, FRAMES_PER_SECOND, pixels)
    num_frames = chunks * rollout.frames_per_chunk
    policy = fitted(policy, states_capacity(given), num_frames, paper_roles(config))
    Rollout(config, rollout, policy).check_length(num_frames)
    return policy


def reason(run: PlannedRun, plan: Plan, refusal: str | None) -> str:
    """Why a run does not fit, and what would help if it is known.

    Args:
      refusal: the compiler's, if it has made no program; the plan is then by formula.
    """
    parts = []
    if plan.headroom < 0:
        by_formula = ", by formula" if plan.compiler_seconds is None else ""
        parts.append(f"{-plan.headroom / GIB:.2f} GiB too little on each chip{by_formula}")
    if refusal is not None:
        parts.append(f"the compiler says {refusal}")
    in_parts = run.in_parts()
    left = -1.0 if in_parts is None else in_parts.by_formula().headroom
    if left >= 0:
        parts.append(f"--shard-weights would do, with {left / GIB:.2f} GiB left by formula")
    return "\n".join(parts)


def latents_of(resolution: str) -> tuple[int, int]:
    """ "480x832" -> (60, 104).

    Raises:
      ValueError: not two sizes that divide into tokens.
    """
    sizes = resolution.split("x")
    if len(sizes) != 2 or not all(size.isdecimal() for size in sizes):
        raise ValueError(f"resolution {resolution!r} should be HEIGHTxWIDTH, such as 480x832")
    height, width = map(int, sizes)
    step = STRIDE * WAN["wan-1.3b"].patch_size[1]
    if min(height, width) < step or height % step or width % step:
        raise ValueError(f"resolution {resolution}: both must be multiples of {step} pixels")
    return height // STRIDE, width // STRIDE


def table_of(plan: Plan, smallest: str | None, title: str, policy: CachePolicy) -> Table:
    table = Table("each chip", "", title=title, caption=described(policy))
    gib = lambda nbytes: f"{nbytes / GIB:.2f} GiB"
    by_formula = "" if plan.compiler_seconds is not None else ", by formula"
    table.add_row("chips, videos at once", f"{plan.num_chips}, {plan.videos}")
    table.add_row("weights of the DiT", gib(plan.weights))
    table.add_row("cache", gib(plan.state))
    table.add_row("prompt, noise", gib(plan.other_inputs))
    table.add_row(f"temporaries{by_formula}", gib(plan.temporaries))
    left = gib(plan.headroom) if plan.headroom >= 0 else f"{gib(-plan.headroom)} too little,"
    table.add_row("left of its memory", f"{left} of {plan.chip.hbm_gib} GiB")
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


def described(policy: CachePolicy) -> str:
    """A policy with its hyper-parameters; of a table of roles, how many heads play each."""
    if not isinstance(policy, HeadForcing) or policy.roles is None:
        return repr(policy)
    played = collections.Counter(role for row in policy.roles.table for role in row)
    counts = ", ".join(f"{count} {role}" for role, count in played.items())
    return f"{dataclasses.replace(policy, roles=None)}".replace("roles=None", f"roles={counts}")
