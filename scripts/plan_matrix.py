"""Plans every policy for Wan 1.3B and 14B on TPU slices, and how one video scales; writes a page.

    pip install -e ".[tpu]"
    JAX_PLATFORMS=cpu python scripts/plan_matrix.py --write docs/planning.md     # an hour or two

Each row is a `vidcache plan`: the chunk program of 480 x 832 in bfloat16, compiled for a slice that
need not be there. Rows are kept in the work folder as they are finished, so the script can be
interrupted and started again.
"""

import dataclasses
import datetime
import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import tyro
from rich.console import Console

import vidcache_jax as vj
from vidcache_jax.benchmark.wan import paper_roles
from vidcache_jax.cache import CachePolicy
from vidcache_jax.config import WAN
from vidcache_jax.planning.plan import GIB
from vidcache_jax.planning.planned_run import PlannedRun
from vidcache_jax.planning.refusal import refusal_of
from vidcache_jax.sampling.output_file import write_text

MODELS = {"1.3B": WAN["wan-1.3b"], "14B": WAN["wan-14b"]}
LATENT_SIZE = (60, 104)
POLICIES: dict[str, Callable[[vj.WanConfig], CachePolicy]] = {
    "`full`, a minute": lambda config: vj.FullCache(capacity=243),
    "`sliding-window`, 21": lambda config: vj.SlidingWindow(21, 3),
    "`tethercache`, 21": lambda config: vj.TetherCache(),
    "`head-forcing`": lambda config: vj.HeadForcing(paper_roles(config)),
    "`future-forcing`, 18": lambda config: vj.FutureForcing(),
    "`ispa`, warm-up": lambda config: vj.ISPA(),
}
SLICES = ("v5e:2x4", "v5p:2x2x2", "v6e:2x4")
WINDOW = "`sliding-window`, 21"


@dataclasses.dataclass(frozen=True)
class Case:
    model: str
    policy: str
    topology: str
    shard_weights: bool = False
    mesh: str | None = None
    """None: the chips share one video as far as they can."""


CASES = tuple(
    Case(model, policy, topology) for model in MODELS for topology in SLICES for policy in POLICIES
)
SHARDED = tuple(Case("14B", WINDOW, topology, shard_weights=True) for topology in SLICES)
STRONG = (
    *(Case("1.3B", WINDOW, f"v5e:{shape}") for shape in ("1x1", "2x2", "2x4", "4x4")),
    *(Case("14B", WINDOW, f"v5p:{shape}") for shape in ("1x1x1", "2x2x1", "2x2x2")),
)
"""One video on ever more chips."""
WEAK = tuple(
    Case("1.3B", WINDOW, f"v6e:{shape}", mesh=f"data={chips}")
    for shape, chips in (("1x1", 1), ("2x2", 4), ("2x4", 8))
)
"""A video a chip."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args:
    work_dir: Path = Path("runs/plans")
    """Finished rows are kept here."""
    write: Path | None = None
    """Where to write the page; printed if not given."""
    models: tuple[str, ...] = tuple(MODELS)
    policies: tuple[str, ...] = tuple(POLICIES)


def main(args: Args) -> None:
    console = Console(stderr=True)
    args.work_dir.mkdir(parents=True, exist_ok=True)
    rows: dict[Case, dict[str, Any]] = {}
    for case in dict.fromkeys((*CASES, *SHARDED, *STRONG, *WEAK)):
        if case.model in args.models and case.policy in args.policies:
            rows[case] = kept(case, args.work_dir)
            console.print(f"{case}: {rows[case]}", markup=False, highlight=False, soft_wrap=True)
    text = page(rows)
    if args.write is None:
        print(text)
    else:
        write_text(args.write, text)


def kept(case: Case, folder: Path) -> dict[str, Any]:
    """The row of a case, from its file or by compiling."""
    name = "-".join(str(value) for value in dataclasses.astuple(case))
    path = folder / f"{''.join(c if c.isalnum() else '-' for c in name)}.json"
    if not path.exists():
        write_text(path, json.dumps(row_of(case)))
    return json.loads(path.read_text())


def row_of(case: Case) -> dict[str, Any]:
    config = MODELS[case.model]
    run = PlannedRun(
        config=config,
        policy=POLICIES[case.policy](config),
        topology=case.topology,
        latent_size=LATENT_SIZE,
        shard_weights=case.shard_weights,
        mesh=case.mesh,
    )
    try:
        plan = run.compiled()
    except jax.errors.JaxRuntimeError as error:
        if (refusal := refusal_of(error)) is None:
            raise
        return {"refused": refusal.splitlines()[0]}
    return {
        "chips": plan.num_chips,
        "videos": plan.videos,
        "headroom": plan.headroom / GIB,
        "state": plan.state / GIB,
        "temporaries": plan.temporaries / GIB,
        "moved": plan.moved / 1e9,
        "roofline": plan.seconds,
        "compiler": [plan.compiler_seconds, plan.attention_seconds, plan.link_seconds],
    }


def page(rows: dict[Case, dict[str, Any]]) -> str:
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "libtpu"))
    return f"""# Plans

Written by `scripts/plan_matrix.py` on {datetime.date.today()}, {versions}.
**Projections: nothing here has run on a TPU.** Memory is the compiler's, for one chip. *Roofline*:
matrix units (or memory, where reading the weights takes longer: with hundreds of tokens on a chip)
and attention at rates that others have measured, then links, one after the other.
*Compiler*: its own estimate of all its instructions, with the roofline's attention and links for
what it does not estimate; for the kernels of scoring, routing, recall and RoPE nothing stands in.
The DiT alone, four denoise passes and the commit, 480 x 832, bfloat16; a chunk is three latent
frames, 12 of pixels. Text encoder and VAE are not in it.

## Every policy on eight chips, one video

{_table({case: rows[case] for case in CASES if case in rows})}

With `--shard-weights`, the layers' weights in eighths, gathered one after the other:

{_table({case: rows[case] for case in SHARDED if case in rows})}

## More chips

*Strong scaling*, one video on ever more chips. Four places share the twelve heads of the 1.3B, all
eight the forty of the 14B, more share the chunk's queries; chips that neither divides make another
video.

{_scaling(rows, STRONG)}

*Weak scaling*, a video a chip: over `data` nothing is exchanged but what is printed. What the host
does, and the writing of files, no plan knows.

{_scaling(rows, WEAK)}
"""


def _table(rows: dict[Case, dict[str, Any]]) -> str:
    lines = [
        "| model | slice | policy | cache | temporaries | left | moved | roofline | compiler |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for case, row in rows.items():
        head = f"| {case.model} | {case.topology} | {case.policy} |"
        if "refused" in row:
            lines.append(f"{head} refused: {row['refused'][:160]} | | | | | |")
            continue
        left = f"{row['headroom']:.1f} GiB" if row["headroom"] >= 0 else (
            f"**{-row['headroom']:.1f} GiB too little**"
        )  # fmt: skip
        lines.append(
            f"{head} {row['state']:.2f} GiB | {row['temporaries']:.2f} GiB | {left} | "
            f"{row['moved']:.1f} GB | {_ms(row['roofline'])} | {_ms(sum(row['compiler']))} |"
        )
    return "\n".join(lines)


def _scaling(rows: dict[Case, dict[str, Any]], cases: tuple[Case, ...]) -> str:
    """How much faster than on the first slice of its model videos are made."""
    lines = [
        "| model | slice | videos | roofline | compiler | links | moved | speed-up, compiler | "
        "of the ideal |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    first: dict[str, tuple[float, int]] = {}
    for case in cases:
        if (row := rows.get(case)) is None:
            continue
        head = f"| {case.model} | {case.topology} |"
        if "refused" in row:
            lines.append(f"{head} refused: {row['refused'][:160]} | | | | | | |")
            continue
        seconds = sum(row["compiler"]) / row["videos"]
        slowest, fewest = first.setdefault(case.model, (seconds, row["chips"]))
        faster, more = slowest / seconds, row["chips"] / fewest
        lines.append(
            f"{head} {row['videos']} | {_ms(row['roofline'])} | {_ms(sum(row['compiler']))} | "
            f"{_ms(row['compiler'][2])} | {row['moved']:.1f} GB | {faster:.2f} | "
            f"{faster / more:.0%} |"
        )
    return "\n".join(lines)


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.0f} ms"


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
