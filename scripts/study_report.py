"""The report of `study_policies.py`: what policies show on the built-in model, what papers say."""

import dataclasses
import datetime
import math
from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np

from vidcache_jax.lab.figures import (
    Finished,
    Interval,
    cost_rows,
    labels_of,
    mean_interval,
    policy_figure,
    video_figure,
)
from vidcache_jax.metrics.table import METRICS

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
    Claim("and better than a larger weight of diversity (alpha=1)", "tethercache",
          "tethercache:alpha=1", "told_colours", "last_clip"),
    Claim("Head Forcing's roles keep the subject better than roles at random", "head-forcing",
          "head-forcing, roles at random", "told_colours", "last_clip"),
    Claim("and better than the same memory for all heads", "head-forcing",
          "head-forcing, all heads memory", "told_colours", "last_clip"),
    Claim("Head Forcing keeps the subject better than a window with a sink", "head-forcing", _SINK,
          "told_colours", "last_clip"),
    Claim("Head Forcing's latents drift less than a window's with a sink (see the remark below)",
          "head-forcing", _SINK, "latent_std", "size_of_drift", -1),
    Claim("Future Forcing keeps the subject better than a window with a sink", "future-forcing",
          _SINK, "told_colours", "last_clip"),
    Claim("Future Forcing's latents drift less than a window's with a sink", "future-forcing",
          _SINK, "latent_std", "size_of_drift", -1),
    Claim("its scores keep the place better than a sink and the latest tokens", "future-forcing",
          "future-forcing:score=sink_fifo", "told_place", "last_clip"),
    Claim("merging lessens drift against plain eviction", "future-forcing",
          "future-forcing:merge=False", "latent_std", "size_of_drift", -1),
    Claim("merging keeps the subject better than plain eviction", "future-forcing",
          "future-forcing:merge=False", "told_colours", "last_clip"),
    Claim("merging keeps the background better than plain eviction", "future-forcing",
          "future-forcing:merge=False", "background_kept", "mean"),
    Claim("ISPA keeps the subject better than its base, a window with a sink", "ispa", _SINK,
          "told_colours", "last_clip"),
    Claim("ISPA's latents drift less than its base's", "ispa", _SINK,
          "latent_std", "size_of_drift", -1),
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
# By hand: what the figures of one run show that the table of claims does not say.
REMARK = """\
**A remark on the run of 2026-11-22.** *Size of drift* is the first 2 s minus the last 2 s, without
its sign. The picture's lines are drift against the first chunk, and there it looks otherwise, for
the latents of some policies change within the first 2 s. At the end of its line the window with a
sink is at +0.027, Head Forcing at -0.035, ISPA at -0.027, TetherCache at -0.021. By that measure
Head Forcing drifts more than a window with a sink, not less; ISPA as much, TetherCache a little
less. These differences have no intervals."""
WORDS = {"mean": "mean", "last_clip": "last 2 s", "quality_drift": "first 2 s minus last 2 s"}


def finished_by_all(runs: Finished, labels: Collection[str]) -> Finished:
    """Of prompts and seeds that every variant has finished, so that means are of the same."""
    who = Counter((run.prompt, run.seed) for run, _ in runs)
    return [(run, each) for run, each in runs if who[run.prompt, run.seed] == len(labels)]


def policies_of(runs: Finished) -> Finished:
    """Without the ablations."""
    return [(run, result) for run, result in runs if not is_ablation(run.label)]


def is_ablation(label: str) -> bool:
    return any(label in labels for labels in ABLATIONS.values())


def report(runs: Finished, wanted: int, *, picture: str) -> str:
    """The study in Markdown: what was run, what came out, what of the papers it shows.

    Args:
      wanted: how many videos were to be made.
      picture: where `study_picture.draw` has put it, as seen from the report.
    """
    policies = policies_of(runs)
    ablations = [(run, result) for run, result in runs if is_ablation(run.label)]
    labels, claims = labels_of(policies), claim_rows(runs, labels_of(runs))
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
No variant attends to more than 21 latent frames, the chunk being made among them, but `full` where
it takes part: windows and TetherCache to 21, Future Forcing to 18, Head Forcing to 4, 7 or 11 by
head, ISPA to 21, and after as many frames half of its layers to the first frame and the chunk
alone. All are given the same noise. Prompts name one sprite, its motion and a place, with a still
camera. A figure is the mean over prompts of the mean over seeds, with its 95 % interval over
prompts (Student's t). The figures are defined in `vidcache_jax/metrics/`; a drifting sprite is out
of view for half of the time, so *told sprites found* cannot be 1.

## Policies

![Four figures over time, a line for each policy]({picture})

*Means over all videos, in bins of two seconds or more.*

{figure_table(policies, labels)}
{scope_of_ablations(ablations)}{"".join(ablation_part(runs, base) for base in ABLATIONS)}
## What papers say

Differences are paired by prompt and seed. *Shows*: the interval lies on the side of the claim; *the
opposite*: on the other; *open*: it holds 0, so at this size nothing can be said. What does not show
on a model this small may hold on a large one, and the other way round.

{verdicts(claims)}

{table(["claim", "figure", "difference", "here"], claims)}

{REMARK}

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
    return f"{_many(len(labels_of(runs)), what)}, {counts}"


def is_large(runs: Finished, *, seeds: int) -> bool:
    pairs = {(run.prompt, run.seed) for run, _ in runs}
    return len(pairs) >= 32 * seeds and len({prompt for prompt, _ in pairs}) >= 32


def scope_of_ablations(ablations: Finished) -> str:
    """How little they are; nothing if there are none."""
    if not ablations:
        return ""
    seeds = _many(len({run.seed for run, _ in ablations}), "seed")
    return f"""
The ablations below are small: {seeds}, three points of each sweep of TetherCache (the default is
one of them), one random shuffle of Head Forcing's roles. Columns of one table are of the same
seeds, so a policy's own figures differ there from those above.
"""


def ablation_part(runs: Finished, base: str) -> str:
    """A policy and what is left of it, on what all of them have made; nothing if none has."""
    variants = {base, *ABLATIONS[base]} & set(labels_of(runs))
    if len(variants) < 2:
        return ""
    own = [each for each in runs if each[0].label in variants]
    shared = finished_by_all(own, variants)
    seeds = sorted({run.seed for run, _ in shared})
    names = f"seed {seeds[0]} alone" if len(seeds) == 1 else f"seeds {', '.join(map(str, seeds))}"
    return (
        f"\n## Ablations: {base}\n\nAll columns are of {names}.\n\n"
        f"{figure_table(shared, labels_of(own))}\n"
    )


def figure_table(runs: Finished, labels: Sequence[str]) -> str:
    return table(["", *(f"`{label}`" for label in labels)], figure_rows(runs, labels))


def figure_rows(runs: Finished, labels: Sequence[str]) -> list[list[str]]:
    return [
        [f"{METRICS[name].title}, {WORDS[statistic]}"]
        + [str(policy_figure(runs, label, name, statistic)) for label in labels]
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
            str(interval),
            verdict(interval, claim.sign),
        ])  # fmt: skip
    return rows


def verdicts(claims: Sequence[Sequence[str]]) -> str:
    """How many of the claims show, in a sentence."""
    count = Counter(row[-1] for row in claims)
    return (
        f"Of {_many(len(claims), 'claim')}, {count['shows']} show here, of {count['the opposite']} "
        f"the opposite shows, {count['open']} are open."
    )


def difference(runs: Finished, claim: Claim) -> Interval:
    """The better variant's figure minus the worse one's, of the same prompts and seeds."""
    of_both: dict[tuple[str, int], dict[str, float]] = {}
    for run, result in runs:
        if run.label in (claim.better, claim.worse):
            value = _statistic(result, claim)
            if not math.isnan(value):
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
