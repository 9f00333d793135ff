"""Tables and curves, from results whose figures are known by hand."""

import csv
import dataclasses
import io
import json
import math

import numpy as np
import pytest

from tests.lab.comparisons import LABELS, comparison
from vidcache_jax.lab import figures
from vidcache_jax.lab.result import Cost, Result

NAN = float("nan")
COST = Cost(cache_bytes=100, first_chunk=2.0, chunk=0.5)


def result(**series) -> Result:
    """Two frames a second, chunks of two frames: a chunk a second, a clip two chunks."""
    arrays = {name: np.array(values, np.float64) for name, values in series.items()}
    frames = np.full(len(next(iter(arrays.values()))), 2)
    return Result({}, 2.0, frames, arrays, COST, {})


def finished(values: dict[tuple[str, int], list[float]]) -> figures.Finished:
    """Results of the first policy by prompt and seed."""
    made = comparison(prompts=("p", "q", "r"), seeds=(0, 1))
    runs = {(run.prompt, run.seed): run for run in made.runs if run.label == LABELS[0]}
    return [(runs[key], result(motion=series)) for key, series in values.items()]


def test_an_interval_is_of_prompts_not_of_seeds():
    """Prompt means 1, 2 and 6: mean 3, deviation sqrt(7), t(0.975, 2) = 4.302653."""
    runs = finished({
        ("p", 0): [0, 0], ("p", 1): [2, 2],
        ("q", 0): [2, 2], ("q", 1): [2, 2],
        ("r", 0): [6, 6], ("r", 1): [NAN, 6],
    })  # fmt: skip
    interval = figures.policy_figure(runs, LABELS[0], "motion", "mean")
    assert (interval.mean, interval.prompts) == (3, 3)
    assert interval.half_width == pytest.approx(4.302653 * math.sqrt(7) / math.sqrt(3), rel=1e-6)
    one = figures.policy_figure(runs[:2], LABELS[0], "motion", "mean")
    assert one.mean == 1 and math.isnan(one.half_width)
    none = figures.policy_figure(runs, LABELS[0], "flicker", "mean")
    assert math.isnan(none.mean) and none.prompts == 0


def test_quality_drift_takes_clips_of_two_seconds():
    scores = result(motion=[9, 7, 100, 3, 1])
    assert figures.video_figure(scores, "motion", "quality_drift") == 8 - 2
    assert figures.video_figure(scores, "motion", "last_clip") == 2
    assert figures.video_figure(scores, "motion", "mean") == 24


def test_a_curve_is_the_mean_over_videos_and_their_deviation():
    videos = [result(motion=[1, 2, NAN]), result(motion=[3, NAN, NAN])]
    curve = figures.curve(videos, "motion", drifts=False)
    assert curve is not None
    assert curve.seconds.tolist() == [0, 1]  # where nothing was measured there is no point
    assert curve.mean.tolist() == [2, 2] and curve.deviation.tolist() == [1, 0]
    drift = figures.curve(videos, "motion", drifts=True)
    assert drift is not None and drift.mean.tolist() == [0, 1]
    assert figures.curve(videos, "flicker", drifts=False) is None
    assert figures.curve([result(motion=[NAN])], "motion", drifts=False) is None


def test_a_long_curve_is_binned_without_losing_its_mean():
    values = np.random.default_rng(0).normal(size=10 * figures.MAX_POINTS)
    curve = figures.curve([result(motion=values)], "motion", drifts=False)
    assert curve is not None and len(curve.mean) == figures.MAX_POINTS
    np.testing.assert_allclose(curve.mean, values.reshape(-1, 10).mean(axis=1))
    np.testing.assert_allclose(curve.seconds, np.arange(0, len(values), 10) + 4.5)


def test_rows_have_drift_and_empty_cells_for_what_was_not_measured(tmp_path):
    run = comparison().runs[0]
    runs = [(run, result(brightness=[0.5, 0.25], motion=[NAN, 0.125]))]
    figures.write_csv(tmp_path / "chunks.csv", figures.chunk_rows(runs))
    rows = list(csv.DictReader(io.StringIO((tmp_path / "chunks.csv").read_text())))
    assert [row["brightness_drift"] for row in rows] == ["0", "-0.25"]
    assert [row["motion"] for row in rows] == ["", "0.125"]
    assert [row["seconds"] for row in rows] == ["0", "1"] and "motion_drift" not in rows[0]
    assert rows[0]["policy"] == run.label and rows[0]["prompt"] == run.prompt


def test_json_has_every_figure_with_its_label_and_the_machine_apart(tmp_path):
    run = comparison().runs[1]
    made = dataclasses.replace(result(motion=[NAN, 0.125]), machine={"jax": "1.2.3"})
    figures.write_tables([(run, made)], tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(figures.TABLES)
    found = json.loads((tmp_path / "figures.json").read_text())
    who = {"policy": LABELS[1], "prompt": run.prompt, "seed": run.seed}
    series = {"frames": [2, 2], "seconds": [0, 1], "motion": [None, 0.125]}
    assert found["chunks"] == [{**who, **series}]
    assert found["settings"] == [{"policy": LABELS[1], "settings": run.settings}]
    assert found["videos"][0]["motion_mean"] == 0.125
    assert "1.2.3" not in (tmp_path / "figures.json").read_text()
    cost = json.loads((tmp_path / "cost.json").read_text())
    assert cost["machines"] == [{"jax": "1.2.3"}]
    assert cost["cost"][0]["chunk_ms"] == 500 and cost["cost"][0]["videos"] == 1


def test_costs_are_medians_and_the_first_chunk_the_slowest():
    run = comparison().runs[0]
    costs = [Cost(100, 2.0, 0.5), Cost(100, 9.0, 0.7), Cost(100, 1.0, 4.0)]
    runs = [(run, Result({}, 2.0, np.array([2]), {}, cost, {})) for cost in costs]
    (row,) = figures.cost_rows(runs)
    assert row["cache_bytes"] == 100 and row["chunk_ms"] == pytest.approx(700)
    assert row["first_chunk_s"] == 9 and row["videos"] == 3
