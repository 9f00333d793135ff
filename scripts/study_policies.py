"""Which policy drifts, which remembers, at what cost: a study on the built-in model.

    python scripts/study_policies.py                    # the whole of it: many hours
    python scripts/study_policies.py --videos 2 --seeds 0 --seconds 20 --work-dir small

Every variant has the same budget and is given the same prompts, seeds and noise. A finished video
is kept in the work folder, so it can be interrupted and started again; the report on what is
finished is written at the end, and on Ctrl-C. Tables of all figures are in the work folder.
"""

import dataclasses
import datetime
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console

import vidcache_jax as vj
from vidcache_jax.cache import CachePolicy, HeadRoles
from vidcache_jax.commands.compilation_cache import enable_compilation_cache
from vidcache_jax.commands.policy_text import read_policy
from vidcache_jax.lab.comparison import Comparison, Run
from vidcache_jax.lab.figures import (
    Finished,
    Interval,
    cost_rows,
    finished,
    mean_interval,
    policy_figure,
    video_figure,
    write_tables,
)
from vidcache_jax.lab.runs import run_all, unfinished
from vidcache_jax.metrics.table import METRICS
from vidcache_jax.sampling.output_file import write_text
from vidcache_jax.sampling.session import chunks_for
from vidcache_jax.tiny.suite import prompt_of, told_scenes

# At most 21 latent frames, the chunk's own among them. A policy that is not named here joins as it
# is by default.
VARIANTS = {
    "full": (),  # remembers everything: no equal budget
    "sliding-window": ("sliding-window:sink_size=0", "sliding-window:sink_size=3"),
}
_ISPA = vj.ISPA(vj.SlidingWindow(window_size=21, sink_size=3), warmup_frames=21)
# What no option of the command line says.
BUILT: dict[str, Callable[[HeadRoles], CachePolicy]] = {
    "ispa": lambda roles: _ISPA,
    "head-forcing, roles at random": lambda roles: vj.HeadForcing(roles.shuffled(0)),
    "head-forcing, all heads memory": lambda roles: vj.HeadForcing(
        roles.replaced("local", "memory").replaced("anchor", "memory")
    ),
    "ispa, no absorption": lambda roles: dataclasses.replace(_ISPA, absorb=False),
}
# By the policy from which something is taken.
ABLATIONS = {
    "tethercache": (
        "tethercache:tau=0",
        "tethercache:tau=0.35",
        "tethercache:alpha=0",
        "tethercache:alpha=1",
    ),
    "head-forcing": ("head-forcing, roles at random", "head-forcing, all heads memory"),
    "future-forcing": ("future-forcing:merge=False", "future-forcing:score=sink_fifo"),
    "ispa": ("ispa, no absorption",),
}


@dataclasses.dataclass(frozen=True)
class Claim:
    """Something a paper says, as a difference between two variants that should be positive."""

    text: str
    better: str
    worse: str
    figure: str
    statistic: str
    sign: int = 1
    """-1: the figure should be smaller."""


_SINK, _WINDOW = "sliding-window:sink_size=3", "sliding-window:sink_size=0"
CLAIMS = (
    Claim("a sink holds the place (attention sink)", _SINK, _WINDOW, "told_place", "last_clip"),
    Claim("TetherCache holds the place longer than a window", "tethercache", _WINDOW,
          "told_place", "last_clip"),
    Claim("TetherCache holds the subject longer than a window", "tethercache", _WINDOW,
          "told_colours", "last_clip"),
    Claim("and longer than a window with a sink", "tethercache", _SINK,
          "told_colours", "last_clip"),
    Claim("TetherCache's latents drift less than a window's", "tethercache", _WINDOW,
          "latent_std", "size_of_drift", -1),
    Claim("alignment (TAME) lessens drift against recall alone", "tethercache",
          "tethercache:tau=0", "latent_std", "size_of_drift", -1),
    Claim("alignment keeps the subject better than recall alone", "tethercache",
          "tethercache:tau=0", "told_colours", "last_clip"),
    Claim("diversity (alpha) keeps the subject better than attention alone", "tethercache",
          "tethercache:alpha=0", "told_colours", "last_clip"),
    Claim("and better than diversity alone", "tethercache", "tethercache:alpha=1",
          "told_colours", "last_clip"),
    Claim("Head Forcing's roles keep the subject better than roles at random", "head-forcing",
          "head-forcing, roles at random", "told_colours", "last_clip"),
    Claim("and better than the same memory for all heads", "head-forcing",
          "head-forcing, all heads memory", "told_colours", "last_clip"),
    Claim("Head Forcing's latents drift less than a window's with a sink", "head-forcing", _SINK,
          "latent_std", "size_of_drift", -1),
    Claim("Future Forcing's latents drift less than a window's with a sink", "future-forcing",
          _SINK, "latent_std", "size_of_drift", -1),
    Claim("its scores keep the place better than a sink and the latest tokens", "future-forcing",
          "future-forcing:score=sink_fifo", "told_place", "last_clip"),
    Claim("merging lessens drift against plain eviction", "future-forcing",
          "future-forcing:merge=False", "latent_std", "size_of_drift", -1),
    Claim("absorption lessens drift against dropping the same history", "ispa",
          "ispa, no absorption", "latent_std", "size_of_drift", -1),
    Claim("absorption keeps the subject better than dropping the same history", "ispa",
          "ispa, no absorption", "told_colours", "last_clip"),
)  # fmt: skip
SHOWN = (
    ("told_place", "last_clip"), ("told_colours", "last_clip"), ("told_shapes", "mean"),
    ("number_kept", "mean"), ("identity_kept", "mean"), ("background_kept", "mean"),
    ("latent_std", "quality_drift"), ("saturation", "quality_drift"),
    ("sharpness", "quality_drift"), ("motion", "mean"), ("flicker", "mean"),
)  # fmt: skip
WORDS = {"mean": "mean", "last_clip": "last 2 s", "quality_drift": "first 2 s minus last 2 s"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args:
    """What to run; the defaults are the whole study."""

    variants: tuple[str, ...] | None = None
    """As in vidcache compare --policies, or as the report names them; all by default."""
    videos: int = 32
    """The first of the 32 prompts."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the policies."""
    ablation_seeds: tuple[int, ...] = (0,)
    """Of the ablations; of the policies they are compared with, the same seeds count."""
    seconds: float = 240.0
    work_dir: Path = Path("study")
    write: Path | None = None
    """Where the report goes, docs/policies.md say; into the work folder by default."""


def main(args: Args) -> None:
    console = Console()
    say = lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True)
    enable_compilation_cache(Path("~/.cache/vidcache_jax"))
    comparisons = comparisons_of(args)
    args.work_dir.mkdir(parents=True, exist_ok=True)
    todo = sum(len(unfinished(each, args.work_dir)) for each in comparisons)
    chunks = chunks_for(args.seconds, comparisons[0].model)
    wanted = sum(len(each.runs) for each in comparisons)
    say(f"{todo} of {wanted} videos of {chunks} chunks are to be made")
    made = 0

    def on_chunk(run: Run) -> None:
        nonlocal made
        made += 1
        if made % chunks == 0:
            say(f"{made // chunks} of {todo}: {run.label}, {run.prompt}, {run.seed}")

    try:
        for comparison in comparisons:
            for failure in run_all(comparison, args.work_dir, on_chunk=on_chunk):
                say(f"could not be made: {failure.run.label}: {failure.reason}")
    except KeyboardInterrupt:
        say("interrupted; the report is on what is finished")
    runs = [
        each
        for comparison in comparisons
        for each in finished_by_all(finished(comparison, args.work_dir), comparison)
    ]
    if not runs:
        say("no prompt is finished for every variant yet")
        return
    write_tables(runs, args.work_dir)
    path = args.write or args.work_dir / "policies.md"
    write_text(path, report(runs, wanted))
    say(f"wrote {path}")


def comparisons_of(args: Args) -> list[Comparison]:
    """Of the policies, and of the ablations, as far as they are asked for."""
    model = vj.load_model("tiny")
    roles = model.head_roles
    assert roles is not None, "the built-in model has a table"
    frames = chunks_for(args.seconds, model) * model.rollout.frames_per_chunk
    ablations = [label for labels in ABLATIONS.values() for label in labels]
    named = [label for name in vj.POLICIES for label in VARIANTS.get(name, (name,))]
    chosen = args.variants or (*named, *ablations)

    def of(labels: Sequence[str], seeds: tuple[int, ...]) -> Comparison:
        return Comparison(
            model=model,
            policies={
                label: BUILT[label](roles) if label in BUILT else read_policy(label, frames, model)
                for label in labels
            },
            prompts=tuple(prompt_of(*told) for told in told_scenes()[: args.videos]),
            seeds=seeds,
            seconds=args.seconds,
            of_sprites=True,
        )

    parts = (
        ([label for label in chosen if label not in ablations], args.seeds),
        ([label for label in chosen if label in ablations], args.ablation_seeds),
    )
    return [of(labels, seeds) for labels, seeds in parts if labels]


def finished_by_all(runs: Finished, comparison: Comparison) -> Finished:
    """Of prompts and seeds that every variant has finished, so that means are of the same."""
    who = Counter((run.prompt, run.seed) for run, _ in runs)
    complete = len(comparison.policies)
    return [(run, each) for run, each in runs if who[run.prompt, run.seed] == complete]


def report(runs: Finished, wanted: int) -> str:
    """The study in Markdown: what was run, what came out, what of the papers it shows.

    Args:
      wanted: how many videos were to be made.
    """
    ablated = {label for labels in ABLATIONS.values() for label in labels}
    policies = [each for each in runs if each[0].label not in ablated]
    ablations = [each for each in runs if each[0].label in ablated]
    labels = _labels(policies)
    parts = [size(part, what) for part, what in ((policies, "policy"), (ablations, "ablation"))]
    seconds, machine = runs[0][0].seconds, runs[0][1].machine
    unfinished_note = "" if len(runs) == wanted else f" ({wanted} were to be made)"
    is_whole = seconds >= 240 and is_large(policies, seeds=3) and is_large(ablations, seeds=1)
    warning = "" if is_whole else (
        "\n**This is a small run, not the study**: that has 32 prompts, 3 seeds and 4 minutes "
        "(`python scripts/study_policies.py --write docs/policies.md`). With so few "
        "prompts most intervals say only that nothing is settled.\n"
    )  # fmt: skip
    return f"""# Policies on the built-in model

Written by `scripts/study_policies.py` on {datetime.date.today()}: **{seconds:g} seconds** \
of {"; of ".join(part for part in parts if part)}; together {_many(len(runs), "video")}\
{unfinished_note}; {machine["device"]}, jax {machine["jax"]}.
{warning}
All variants attend to at most 21 latent frames, the chunk being made among them, and are given the
same noise. Prompts name one sprite, its motion and a place, with a still camera. A figure is the
mean over prompts of the mean over seeds, with its 95 % interval over prompts (Student's t). The
figures are defined in `vidcache_jax/metrics/`; a drifting sprite is out of view for half of the
time, so *told sprites found* cannot be 1.

## Policies

{figure_table(policies, labels)}
{"".join(ablation_part(runs, base) for base in ABLATIONS)}
## What papers say

Differences are paired by prompt and seed. *Shows*: the interval lies on the side of the claim; *the
opposite*: on the other; *open*: it holds 0, so at this size nothing can be said. What does not show
on a model this small may hold on a large one, and the other way round.

{table(["claim", "figure", "difference", "here"], claim_rows(runs, _labels(runs)))}

## Cost

Times are of the machine as busy as it was meanwhile; docs/measured.md has some of quieter runs. A
chunk is three frames. The first has the compilation in it, unless the compilation cache had the
program.

{table(["", "cache, MiB", "a chunk, ms", "slowest first chunk, s"], cost_table(runs))}

## Run it

```sh
python scripts/study_policies.py --write docs/policies.md
```

It can be interrupted and started again. To look at the videos of some of it, side by side:
`vidcache compare` (see the README).
"""


def size(runs: Finished, what: str) -> str:
    """How many variants, prompts and seeds; nothing of nothing."""
    if not runs:
        return ""
    prompts, seeds = len({run.prompt for run, _ in runs}), len({run.seed for run, _ in runs})
    counts = f"**{_many(prompts, 'prompt')}, {_many(seeds, 'seed')}**"
    return f"{_many(len(_labels(runs)), what)}, {counts}"


def is_large(runs: Finished, *, seeds: int) -> bool:
    pairs = {(run.prompt, run.seed) for run, _ in runs}
    return len(pairs) >= 32 * seeds and len({prompt for prompt, _ in pairs}) >= 32


def ablation_part(runs: Finished, base: str) -> str:
    """A policy and what is left of it, on what all of them have made; nothing if none has."""
    variants = {base, *ABLATIONS[base]} & set(_labels(runs))
    if len(variants) < 2:
        return ""
    own = [each for each in runs if each[0].label in variants]
    made = Counter((run.prompt, run.seed) for run, _ in own)
    shared = [(run, x) for run, x in own if made[run.prompt, run.seed] == len(variants)]
    return f"\n## Ablations: {base}\n\n{figure_table(shared, _labels(own))}\n"


def figure_table(runs: Finished, labels: Sequence[str]) -> str:
    return table(["", *(f"`{label}`" for label in labels)], figure_rows(runs, labels))


def _labels(runs: Finished) -> list[str]:
    return list(dict.fromkeys(run.label for run, _ in runs))


def figure_rows(runs: Finished, labels: Sequence[str]) -> list[list[str]]:
    return [
        [f"{METRICS[name].title}, {WORDS[statistic]}"]
        + [_shown(policy_figure(runs, label, name, statistic)) for label in labels]
        for name, statistic in SHOWN
    ]


def claim_rows(runs: Finished, labels: Sequence[str]) -> list[list[str]]:
    rows = []
    for claim in CLAIMS:
        if claim.better not in labels or claim.worse not in labels:
            continue
        interval = difference(runs, claim)
        words = {"size_of_drift": "size of drift", **WORDS}[claim.statistic]
        rows.append([
            f"{claim.text}: `{claim.better}` against `{claim.worse}`",
            f"{METRICS[claim.figure].title.lower()}, {words}",
            _shown(interval),
            verdict(interval, claim.sign),
        ])  # fmt: skip
    return rows


def difference(runs: Finished, claim: Claim) -> Interval:
    """The better variant's figure minus the worse one's, of the same prompts and seeds."""
    of_both: dict[tuple[str, int], dict[str, float]] = {}
    for run, result in runs:
        value = _statistic(result, claim)
        if run.label in (claim.better, claim.worse) and not math.isnan(value):
            of_both.setdefault((run.prompt, run.seed), {})[run.label] = value
    by_prompt: dict[str, list[float]] = {}
    for (prompt, _), values in of_both.items():
        if len(values) == 2:
            by_prompt.setdefault(prompt, []).append(values[claim.better] - values[claim.worse])
    return mean_interval([float(np.mean(differences)) for differences in by_prompt.values()])


def _statistic(result, claim: Claim) -> float:
    if claim.statistic == "size_of_drift":
        return abs(video_figure(result, claim.figure, "quality_drift"))
    return video_figure(result, claim.figure, claim.statistic)


def verdict(interval: Interval, sign: int) -> str:
    if math.isnan(interval.half_width):
        return "open"
    low = sign * interval.mean - interval.half_width
    high = sign * interval.mean + interval.half_width
    return "shows" if low > 0 else "the opposite" if high < 0 else "open"


def cost_table(runs: Finished) -> list[list[str]]:
    return [
        [
            f"`{row['policy']}`",
            f"{int(row['cache_bytes']) / 2**20:.2f}",
            f"{float(row['chunk_ms']):.0f}",
            f"{float(row['first_chunk_s']):.1f}",
        ]
        for row in cost_rows(runs)
    ]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _many(count: int, noun: str) -> str:
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{count} {noun if count == 1 else plural}"


def _shown(interval: Interval) -> str:
    if math.isnan(interval.mean):
        return "–"
    if math.isnan(interval.half_width):
        return f"{interval.mean:.3g}"
    return f"{interval.mean:.3g} ± {interval.half_width:.2g}"


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
