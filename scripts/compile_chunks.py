"""Compiles the chunk program of every policy for TPUs on a machine that has none; prints a table.

    pip install -e ".[tpu]"                          # the compiler, libtpu
    python scripts/compile_chunks.py                 # ten minutes of two cores

The DiT of Wan 1.3B at 480 x 832 in bfloat16: all its layers, four denoise passes and the commit
pass, kernels included; ISPA's is that of its warm-up. The script fails if a program for one chip
does not compile, does not fit its memory though `Case` says that it does, or fits though it should
not; and on eight, if much more crosses between them than the formula says.

Memory is the compiler's, operations are counted by formula. *Compiler* is its own estimate of all
its instructions; kernels are not in it. For those of attention the roofline stands. Nothing here
runs on a TPU.
"""

import os

# Read when JAX is imported: with libtpu there it would look for a TPU first.
os.environ["JAX_PLATFORMS"] = "cpu"

import concurrent.futures
import dataclasses
import sys

import jax
import tyro
from rich.console import Console
from rich.table import Table

import vidcache_jax as vj
from vidcache_jax.benchmark.wan import paper_roles
from vidcache_jax.cache import CachePolicy
from vidcache_jax.planning.plan import GIB, Plan
from vidcache_jax.planning.planned_run import PlannedRun
from vidcache_jax.planning.refusal import refusal_of

CONFIG = vj.WanConfig.wan_1_3b()
LATENT_SIZE = (60, 104)
POLICIES: dict[str, CachePolicy] = {
    # Fifteen seconds.
    "full": vj.FullCache(capacity=63),
    "sliding-window": vj.SlidingWindow(21, 3),
    "tethercache": vj.TetherCache(),
    "head-forcing": vj.HeadForcing(paper_roles(CONFIG)),
    "future-forcing": vj.FutureForcing(),
    "ispa": vj.ISPA(),
}
ONE_CHIP = ("v5e:1x1", "v6e:1x1", "v5p:1x1x1")
"""Of a v5p one can have four at least; the program is for one of them."""
SLICE = "v5e:2x4"
MOST_MOVED = 1.2
"""Of what the formula says is moved; a policy may exchange a little besides."""


@dataclasses.dataclass(frozen=True)
class Case:
    policy: str
    topology: str

    @property
    def fits(self) -> bool:
        return (self.policy, self.topology) != ("full", "v5e:1x1")


CASES = (
    *(Case(policy, chip) for chip in ONE_CHIP for policy in POLICIES),
    Case("future-forcing", SLICE),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args:
    """What to compile."""

    policies: tuple[str, ...] = tuple(POLICIES)
    topologies: tuple[str, ...] = (*ONE_CHIP, SLICE)


def main(args: Args) -> None:
    table = Table(
        "topology", "policy", "weights", "cache", "temporaries", "left",
        "operations", "compiler", "attention", "moved",
    )  # fmt: skip
    cases = [
        case for case in CASES if case.policy in args.policies and case.topology in args.topologies
    ]
    failures = []
    # A program takes a minute or two, most of it in one thread of the compiler's.
    with concurrent.futures.ThreadPoolExecutor(max_workers=2) as pool:
        for case, (cells, failure) in zip(cases, pool.map(compiled, cases), strict=True):
            print(case, *cells, flush=True)
            table.add_row(case.topology, case.policy, *cells)
            failures += [f"{case.policy} on {case.topology}: {failure}"] if failure else []
    Console(width=150).print(table)
    if failures:
        sys.exit("\n".join(failures))


def compiled(case: Case) -> tuple[list[str], str | None]:
    """The rest of a case's row, and what is wrong with it."""
    run = PlannedRun(
        config=CONFIG,
        policy=POLICIES[case.policy],
        topology=case.topology,
        latent_size=LATENT_SIZE,
    )
    try:
        plan = run.compiled()
    except jax.errors.JaxRuntimeError as error:
        is_right = refusal_of(error) is not None and not case.fits
        return ["refused"], None if is_right else str(error).strip().splitlines()[0]
    return row_of(plan), problem_of(case, plan, run.by_formula())


def row_of(plan: Plan) -> list[str]:
    gib = lambda nbytes: f"{nbytes / GIB:.2f} GiB"
    ms = lambda seconds: f"{1e3 * seconds:.0f} ms"
    return [
        gib(plan.weights), gib(plan.state), gib(plan.temporaries), gib(plan.headroom),
        f"{plan.work.total / 1e12:.1f} TFLOP", ms(plan.compiler_seconds or 0.0),
        ms(plan.attention_seconds), f"{plan.moved / 1e9:.2f} GB",
    ]  # fmt: skip


def problem_of(case: Case, plan: Plan, formula: Plan) -> str | None:
    if (plan.headroom >= 0) != case.fits:
        return f"{plan.headroom / GIB:.2f} GiB are left of the chip's memory"
    if plan.moved > MOST_MOVED * formula.moved:
        return f"{plan.moved / 1e9:.2f} GB are moved, {formula.moved / 1e9:.2f} by the formula"
    return None


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
