"""What the study concludes, from figures known by hand."""

import math
from pathlib import Path

import numpy as np
import pytest

from scripts.study_report import (
    CLAIMS,
    REMARK,
    Claim,
    ablation_part,
    difference,
    finished_by_all,
    report,
    verdict,
)
from tests.lab.comparisons import LABELS, PROMPTS, comparison
from vidcache_jax.lab.comparison import Comparison
from vidcache_jax.lab.figures import Finished, Interval
from vidcache_jax.lab.result import Cost, Result
from vidcache_jax.metrics.table import METRICS

COMPARISON = comparison(prompts=("p", "q", "r"))


def finished(values: dict[tuple[str, str], float], of: Comparison = COMPARISON) -> Finished:
    """Videos of one chunk; the figure by label and prompt, the seed added to it."""
    cost = Cost(2**20, 2.0, 0.5)
    machine = {"device": "1 x cpu", "jax": "0.10.2"}
    made = []
    for run in of.runs:
        value = values.get((run.label, run.prompt))
        if value is not None:
            series = {"motion": np.array([value + run.seed], np.float64)}
            made.append((run, Result({}, 1.0, np.array([2]), series, cost, machine)))
    return made


def test_a_difference_is_paired_by_prompt():
    """Prompts lie far apart, the variants by 1, 2 and 3: 2 +- 4.302653 * 1 / sqrt(3)."""
    better, worse = LABELS
    runs = finished({
        (better, "p"): 101, (worse, "p"): 100,
        (better, "q"): 12, (worse, "q"): 10,
        (better, "r"): 4, (worse, "r"): 1,
    })  # fmt: skip
    claim = Claim("moves more", better, worse, "motion", "mean")
    interval = difference(runs, claim)
    assert interval.mean == 2 and interval.prompts == 3
    assert interval.half_width == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)


@pytest.mark.parametrize(
    ("mean", "half_width", "sign", "expected"),
    [
        (2, 1, 1, "shows"), (2, 1, -1, "the opposite"), (-2, 1, -1, "shows"),
        (-2, 1, 1, "the opposite"), (1, 2, 1, "open"), (1, 2, -1, "open"),
        (9, math.nan, 1, "open"),
    ],
)  # fmt: skip
def test_verdicts(mean, half_width, sign, expected):
    assert verdict(Interval(mean, half_width, 3), sign) == expected


def test_an_ablation_is_compared_on_its_own_seeds():
    """The policy has made two seeds, the ablation one: figures and difference are of that one."""
    base, ablation = "tethercache", "tethercache:tau=0"

    def made(label: str, figure: float, seeds: tuple[int, ...]) -> Finished:
        part = comparison(policies={label: COMPARISON.policies["full"]}, seeds=seeds)
        return finished({(label, prompt): figure for prompt in PROMPTS}, part)

    runs = [*made(base, 5, (0, 1)), *made(ablation, 3, (0,))]
    part = ablation_part(runs, base)
    assert "| Motion, mean | 5 ± 0 | 3 ± 0 |" in part and "All columns are of seed 0 alone." in part
    assert ablation_part(runs, "ispa") == ""
    interval = difference(runs, Claim("moves more", base, ablation, "motion", "mean"))
    assert (interval.mean, interval.half_width, interval.prompts) == (2, 0, 2)
    text = report(runs, wanted=6, picture="p.png")
    sizes = "of 1 policy, **2 prompts, 2 seeds**; of 1 ablation, **2 prompts, 1 seed**"
    assert f"{sizes}; together 6 videos;" in text
    assert "The ablations below are small: 1 seed, three points of each sweep" in text
    assert "| Motion, mean | 5.5 ± 0 |" in text


def test_only_what_every_variant_has_finished_counts():
    first, second = LABELS
    runs = finished({(first, "p"): 1, (second, "p"): 2, (first, "q"): 3})
    kept = finished_by_all(runs, COMPARISON.policies)
    assert {run.prompt for run, _ in kept} == {"p"} and len(kept) == 4
    text = report(kept, wanted=12, picture="p.png")
    size = "**1.125 seconds** of 2 policies, **1 prompt, 2 seeds**; together 4 videos"
    assert f"{size} (12 were to be made)" in text
    assert "This is a small run, not the study" in text


def test_claims_are_of_known_figures():
    assert all(claim.figure in METRICS for claim in CLAIMS)


def test_the_document_has_what_the_script_says_by_hand():
    """It was written by a run of many hours: every claim has its row, or is said to have none."""
    document = (Path(__file__).parents[1] / "docs" / "policies.md").read_text()
    assert REMARK in document
    table, added = document.split("Claims that were added after this run")
    for claim in CLAIMS:
        row = f"| {claim.text}: `{claim.better}` against `{claim.worse}` |"
        assert (row in table) != (f"- {claim.text}\n" in added), claim.text
