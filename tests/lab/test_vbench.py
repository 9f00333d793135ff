"""Names and files as VBench has them, and its results as it writes them."""

import hashlib
import json

import pytest

from tests.lab.comparisons import LABELS, PROMPTS, comparison
from vidcache_jax.lab import vbench
from vidcache_jax.lab.runs import run_folder

COMPARISON = comparison(seeds=(7, 3))


@pytest.fixture
def folder(tmp_path):
    """As if everything had been made: a video is its run's name."""
    for run in COMPARISON.runs:
        place = run_folder(run, tmp_path)
        place.mkdir(parents=True)
        (place / "video.mp4").write_text(run.name)
        (place / "result.json").write_text("{}")
    return tmp_path


def test_names_are_prompt_and_index(folder):
    made = vbench.export(COMPARISON, folder)
    assert made == [vbench.policy_folder(folder, label) for label in LABELS]
    names = {f"{prompt}-{index}.mp4" for prompt in PROMPTS for index in (0, 1)}
    assert {path.name for path in (made[0] / "videos").iterdir()} == names
    run = next(r for r in COMPARISON.runs if r.seed == 7 and r.prompt == PROMPTS[1])
    assert (made[0] / "videos" / f"{PROMPTS[1]}-1.mp4").read_text() == run.name
    prompts = json.loads((made[0] / "prompts.json").read_text())
    assert prompts == {name: name.rpartition("-")[0] for name in names}
    assert (made[0] / "prompts.txt").read_text().splitlines() == list(PROMPTS)
    about = json.loads((made[0] / "export.json").read_text())
    text = "a red circle bounces\na blue square drifts left\n"
    assert about["prompt_list_sha256"] == hashlib.sha256(text.encode()).hexdigest()
    assert about["extended"] is False and about["shortened"] == []
    assert about["seeds"] == {n: 3 if n.endswith("-0.mp4") else 7 for n in names}


def test_extended_prompts_are_named_by_their_originals(folder):
    (first, _) = vbench.export(COMPARISON, folder, ["A circle.", "A square."])
    assert (first / "videos" / "A square.-0.mp4").exists()
    about = json.loads((first / "export.json").read_text())
    assert about["extended"] is True and about["generated_from"]["A circle."] == PROMPTS[0]
    with pytest.raises(ValueError, match="1 original prompts for 2 prompts"):
        vbench.export(COMPARISON, folder, ["A circle."])


def test_exporting_again_leaves_no_old_names(folder):
    vbench.export(COMPARISON, folder, ["A circle.", "A square."])
    (first, _) = vbench.export(COMPARISON, folder)
    assert not list((first / "videos").glob("A *"))


def test_two_prompts_of_one_original_would_overwrite_each_other(folder):
    with pytest.raises(ValueError, match="'A circle.' is there twice"):
        vbench.export(COMPARISON, folder, ["A circle.", "A circle."])
    assert not (folder / "vbench").exists()


def test_scores_stay_with_the_export_that_they_are_of(folder):
    vbench.export(COMPARISON, folder)
    write_results(folder, LABELS[1], "r", {"motion_smoothness": [0.875, []]})
    vbench.export(COMPARISON, folder)  # the same again
    message = "r_eval_results.json is of an export with other videos or prompts; move"
    with pytest.raises(ValueError, match=message):
        vbench.export(COMPARISON, folder, ["A circle.", "A square."])
    first = vbench.policy_folder(folder, LABELS[0])
    assert not list((first / "videos").glob("A *")), "what is refused changes nothing"
    with pytest.raises(ValueError, match=message):
        vbench.export(comparison(seeds=(3,)), folder)


def test_what_is_shortened_is_told(folder):
    (first, _) = vbench.export(COMPARISON, folder, ["snake_case", "A square."])
    assert vbench.shortened(first) == [f"{vbench.file_stem('snake_case')}-{i}.mp4" for i in (0, 1)]
    assert vbench.shortened(folder) == []


def test_nothing_finished_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no video of this comparison is finished"):
        vbench.export(COMPARISON, tmp_path)


@pytest.mark.parametrize(
    "prompt", ["a/b", "snake_case", "x" * 300, "part -Scene of", "take-2", ".hidden", "é" * 120]
)
def test_prompts_that_cannot_be_names_are_shortened(prompt):
    """VBench-Long takes a name to end at "_", and an index to be what follows the last "-"."""
    stem = vbench.file_stem(prompt)
    assert stem != prompt and stem == vbench.file_stem(prompt) and len(stem) < 60
    assert vbench.file_stem(stem) == stem
    assert vbench.file_stem(prompt + "!") != stem


def write_results(folder, label: str, name: str, content: object) -> None:
    place = vbench.policy_folder(folder, label) / "results"
    place.mkdir(exist_ok=True)
    (place / f"{name}_eval_results.json").write_text(json.dumps(content))


def clip(video: str, number: int, score: float) -> dict[str, object]:
    return {"video_path": f"v/split_clip/{video}/{video}_{number:03d}.mp4", "video_results": score}


def test_scores_are_read_back(folder):
    vbench.export(COMPARISON, folder)
    assert vbench.read_scores(folder, LABELS[0]) is None
    clips = [clip("a-0", 10, 60.0), clip("a-0", 0, 70.0), clip("a-0", 2, 1.0),
             clip("b-0", 0, 50.0), clip("b-0", 1, 46.0)]  # fmt: skip
    whole = [{"video_path": "v/a-0.mp4", "video_results": 0.5}]
    write_results(folder, LABELS[0], "results_2026-01-01", {"imaging_quality": [0.1, []]})
    latest = {"imaging_quality": [0.58, clips, []], "dynamic_degree": [0.25, whole]}
    write_results(folder, LABELS[0], "results_2026-01-02", latest)
    scores = vbench.read_scores(folder, LABELS[0])
    assert scores is not None
    assert scores.scores == {"imaging_quality": 0.58, "dynamic_degree": 0.25}
    assert scores.drifts == {"imaging_quality": pytest.approx((10 + 4) / 2)}
    assert scores.extended is False and len(scores.prompt_hash) == 64


def test_a_drift_goes_with_the_score_that_it_belongs_to(folder):
    vbench.export(COMPARISON, folder)
    clips = [clip("a-0", 0, 70.0), clip("a-0", 1, 60.0)]
    write_results(folder, LABELS[0], "1", {"imaging_quality": [0.65, clips]})
    write_results(folder, LABELS[0], "2", {"imaging_quality": [0.6, []]})
    scores = vbench.read_scores(folder, LABELS[0])
    assert scores is not None
    assert scores.scores == {"imaging_quality": 0.6} and scores.drifts == {}


def test_scenes_are_parts_of_one_video():
    """Each has a folder and clip numbers of its own."""
    scene = lambda number, place, score: clip(f"a-0-Scene-{number}", place, score)
    clips = [scene(10, 0, 1.0), scene(2, 1, 50.0), scene(0, 1, 30.0), scene(0, 0, 9.0)]
    assert vbench.clip_drift(clips) == 9.0 - 1.0
    assert vbench.clip_drift([scene(0, 0, 9.0), scene(1, 0, 4.0), clip("b-0", 0, 1.0)]) == 5.0
    assert vbench.clip_drift([clip("a-0", 0, 1.0), clip("b-0", 1, 2.0)]) is None


def test_results_without_an_export_and_damaged_ones_cost_only_their_own(folder):
    vbench.export(COMPARISON, folder)
    write_results(folder, LABELS[0], "r", {"motion_smoothness": [0.875, []]})
    write_results(folder, LABELS[1], "odd", [1])
    scores, unread = vbench.read_all(COMPARISON, folder)
    assert scores.keys() == {LABELS[0]} and len(unread) == 1 and "odd_eval_results" in unread[0]
    (vbench.policy_folder(folder, LABELS[0]) / "export.json").unlink()
    with pytest.raises(ValueError, match="has results of VBench, but no export.json"):
        vbench.read_scores(folder, LABELS[0])


@pytest.mark.parametrize("content", [[1], {"imaging_quality": 3}, {"imaging_quality": []}])
def test_other_files_are_refused_by_name(folder, content):
    vbench.export(COMPARISON, folder)
    write_results(folder, LABELS[0], "odd", content)
    with pytest.raises(ValueError, match="odd_eval_results.json is no result of VBench"):
        vbench.read_scores(folder, LABELS[0])
