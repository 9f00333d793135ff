"""Tables of a comparison: what was measured of chunks, of videos, of policies.

They hold finished runs only, in the order of the comparison, and nothing that two identical
comparisons would not agree on; what was measured of the machine, and what machine it was, is in
`cost.csv` and `cost.json` alone.
"""

import csv
import dataclasses
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from vidcache_jax.lab.comparison import Comparison, Run
from vidcache_jax.lab.result import Result
from vidcache_jax.lab.runs import is_finished, run_folder
from vidcache_jax.metrics import series
from vidcache_jax.metrics.table import METRICS
from vidcache_jax.sampling.output_file import write_text

Finished = Sequence[tuple[Run, Result]]
Row = Mapping[str, str | int | float]
STATISTICS = ("mean", "last_clip", "quality_drift")
"""Of a video: mean over its frames, mean over its last clip, first clip minus last clip."""
MAX_POINTS = 120
TABLES = ("chunks.csv", "videos.csv", "policies.csv", "cost.csv", "figures.json", "cost.json")


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean over prompts, and half the width of its 95 % interval (NaN from one prompt)."""

    mean: float
    half_width: float
    prompts: int

    def __str__(self) -> str:
        if math.isnan(self.mean):
            return "–"
        if math.isnan(self.half_width):
            return f"{self.mean:.3g}"
        return f"{self.mean:.3g} ± {self.half_width:.2g}"


@dataclasses.dataclass(frozen=True)
class Curve:
    """A figure over time: mean and standard deviation over videos, in bins of equal length."""

    seconds: Float[np.ndarray, " bins"]
    mean: Float[np.ndarray, " bins"]
    deviation: Float[np.ndarray, " bins"]


def finished(comparison: Comparison, folder: Path) -> Finished:
    """Raises ValueError if a result is damaged."""
    runs = [run for run in comparison.runs if is_finished(run, folder)]
    return [(run, Result.read(run_folder(run, folder))) for run in runs]


def labels_of(runs: Finished) -> list[str]:
    """Each policy once, in the order of the comparison."""
    return list(dict.fromkeys(run.label for run, _ in runs))


def video_figure(result: Result, name: str, statistic: str) -> float:
    """One of `STATISTICS` of one figure of one video; clips are of `series.CLIP_SECONDS`."""
    values = result.series.get(name, np.full(len(result.frames), np.nan))
    if statistic == "mean":
        return series.mean(values, result.frames)
    clip = series.CLIP_SECONDS * result.frames_per_second
    of_clips = {"last_clip": series.last_clip, "quality_drift": series.quality_drift}
    return of_clips[statistic](values, result.frames, clip)


def policy_figure(runs: Finished, label: str, name: str, statistic: str) -> Interval:
    """A policy's figure: the mean of its prompts' means over seeds.

    Seeds of one prompt are no independent videos of what the policy may meet, so the interval is
    that of the prompts.
    """
    by_prompt: dict[str, list[float]] = {}
    for run, result in runs:
        if run.label == label:
            value = video_figure(result, name, statistic)
            if not math.isnan(value):
                by_prompt.setdefault(run.prompt, []).append(value)
    return mean_interval([float(np.mean(values)) for values in by_prompt.values()])


def mean_interval(of_prompts: Sequence[float]) -> Interval:
    """Mean +- t(0.975, n - 1) * deviation / sqrt(n) of one number for each prompt, Student's t."""
    means, count = np.array(of_prompts), len(of_prompts)
    if count < 2:
        return Interval(float(means[0]) if count else math.nan, math.nan, count)
    # Slow to import, and the command line imports this module at start.
    import scipy.stats

    quantile = float(scipy.stats.t.ppf(0.975, count - 1))
    half_width = quantile * float(means.std(ddof=1)) / math.sqrt(count)
    return Interval(float(means.mean()), half_width, count)


def curve(results: Sequence[Result], name: str, *, drifts: bool) -> Curve | None:
    """A figure, or its drift against the first chunk, of some videos; None if never measured."""
    columns = [result.series[name] for result in results if name in result.series]
    if not columns:
        return None
    values = np.stack([series.drift(column) if drifts else column for column in columns])
    seconds = results[0].seconds
    bins = np.array_split(np.arange(len(seconds)), min(MAX_POINTS, len(seconds)))
    binned = np.stack([_mean_of_known(values[:, index], axis=1) for index in bins], axis=1)
    known = ~np.isnan(binned).all(axis=0)
    if not known.any():
        return None
    mean = _mean_of_known(binned, axis=0)
    deviation = np.sqrt(_mean_of_known((binned - mean) ** 2, axis=0))
    middle = np.array([seconds[index].mean() for index in bins])
    return Curve(middle[known], mean[known], deviation[known])


def _mean_of_known(values: np.ndarray, axis: int) -> np.ndarray:
    """`nanmean`, NaN without a warning where there is nothing."""
    known = ~np.isnan(values)
    total = np.where(known, values, 0.0).sum(axis=axis)
    count = known.sum(axis=axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def chunk_rows(runs: Finished) -> Iterable[Row]:
    """A row per chunk; of figures that drift, their drift too."""
    for run, result in runs:
        drifts = {
            f"{name}_drift": series.drift(result.series[name])
            for name in result.series
            if METRICS[name].drifts
        }
        columns = {**result.series, **drifts}
        for chunk, (start, frames) in enumerate(zip(result.seconds, result.frames, strict=True)):
            yield {
                **_who(run),
                "chunk": chunk,
                "seconds": float(start),
                "frames": int(frames),
                **{name: float(values[chunk]) for name, values in columns.items()},
            }


def video_rows(runs: Finished) -> Iterable[Row]:
    """A row per video."""
    for run, result in runs:
        figures = {
            f"{name}_{statistic}": video_figure(result, name, statistic)
            for name in result.series
            for statistic in STATISTICS
        }
        yield {**_who(run), **figures}


def policy_rows(runs: Finished) -> Iterable[Row]:
    """A row per policy and figure: what the report's table is made from."""
    names = dict.fromkeys(name for _, result in runs for name in result.series)
    for label in labels_of(runs):
        for name in names:
            for statistic in STATISTICS:
                interval = policy_figure(runs, label, name, statistic)
                yield {
                    "policy": label,
                    "figure": name,
                    "statistic": statistic,
                    "mean": interval.mean,
                    "half_width_95": interval.half_width,
                    "prompts": interval.prompts,
                }


def cost_rows(runs: Finished) -> Iterable[Row]:
    """A row per policy: medians over its videos, the largest of the first chunks."""
    for label in labels_of(runs):
        costs = [result.cost for run, result in runs if run.label == label]
        yield {
            "policy": label,
            "cache_bytes": max(cost.cache_bytes for cost in costs),
            "chunk_ms": 1000 * float(np.median([cost.chunk for cost in costs])),
            "first_chunk_s": max(cost.first_chunk for cost in costs),
            "videos": len(costs),
        }


def write_tables(runs: Finished, folder: Path) -> None:
    """`TABLES`: the same as CSV, and as JSON with settings, labels and versions."""
    write_csv(folder / "chunks.csv", chunk_rows(runs))
    write_csv(folder / "videos.csv", video_rows(runs))
    write_csv(folder / "policies.csv", policy_rows(runs))
    write_csv(folder / "cost.csv", cost_rows(runs))
    machines = dict.fromkeys(tuple(result.machine.items()) for _, result in runs)
    figures = {
        "settings": [{"policy": run.label, "settings": run.settings} for run, _ in runs],
        "chunks": [{**_who(run), **_series(result)} for run, result in runs],
        "videos": [_without_nan(row) for row in video_rows(runs)],
        "policies": [_without_nan(row) for row in policy_rows(runs)],
    }
    cost = {
        "cost": [_without_nan(row) for row in cost_rows(runs)],
        "machines": [dict(machine) for machine in machines],
    }
    write_text(folder / "figures.json", json.dumps(figures))
    write_text(folder / "cost.json", json.dumps(cost, indent=1))


def write_csv(path: Path, rows: Iterable[Row]) -> None:
    rows = list(rows)
    text = io.StringIO()
    columns = dict.fromkeys(name for row in rows for name in row)
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    write_text(path, text.getvalue())


def _series(result: Result) -> dict[str, Any]:
    """Figures of each chunk, a list for each; None where nothing was measured."""
    columns = {"seconds": result.seconds, **result.series}
    known = lambda values: [None if math.isnan(x) else x for x in values.tolist()]
    return {"frames": result.frames.tolist(), **{name: known(x) for name, x in columns.items()}}


def _who(run: Run) -> Row:
    return {"policy": run.label, "prompt": run.prompt, "seed": run.seed}


def _cell(value: str | int | float) -> str | int:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.7g}"
    return value


def _without_nan(row: Row) -> dict[str, str | int | float | None]:
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in row.items()
    }
