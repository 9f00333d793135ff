"""A comparison loses nothing: not to an interruption, not to a bad prompt; and is always equal."""

import dataclasses
import json
import shutil
from pathlib import Path

import av
import jax
import numpy as np
import pytest
from PIL import Image

import vidcache_jax as vj
from tests.lab.comparisons import LABELS, MODEL, PROMPTS, comparison
from tests.toy import toy_model
from vidcache_jax.lab import side_by_side
from vidcache_jax.lab.failures import Failure, read_failures, write_failures
from vidcache_jax.lab.figures import finished
from vidcache_jax.lab.outputs import write_outputs
from vidcache_jax.lab.runs import run_all, run_folder, unfinished
from vidcache_jax.metrics.table import METRICS
from vidcache_jax.planning import memory

FIGURES = ("chunks.csv", "videos.csv", "policies.csv", "figures.json")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The folder of a comparison that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    assert run_all(comparison(), folder) == ()
    write_outputs(comparison(), folder)
    return folder


def figures(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FIGURES}


def test_every_run_has_its_video_picture_and_figures(whole):
    runs = finished(comparison(), whole)
    assert len(runs) == 8
    for run, result in runs:
        with av.open(str(run_folder(run, whole) / "video.mp4")) as container:
            assert sum(1 for _ in container.decode(video=0)) == 9
            assert container.metadata["title"] == run.prompt
        assert result.frames.tolist() == [3, 3, 3]
        np.testing.assert_allclose(result.seconds, [0, 3 / 8, 6 / 8])
        assert result.series.keys() <= METRICS.keys() and len(result.series) == 8
        session = vj.Session(comparison().model, run.policy, prompt=run.prompt)
        assert result.cost.cache_bytes == session.cache_nbytes
        assert 0 < result.cost.chunk < result.cost.first_chunk + 10


def test_all_policies_are_given_the_same_noise(whole):
    """In the first chunk nothing is remembered yet, so it can differ by rounding alone."""
    runs = finished(comparison(), whole)
    for prompt in PROMPTS:
        first, other = (r for run, r in runs if run.prompt == prompt and run.seed == 0)
        for name, values in first.series.items():
            np.testing.assert_allclose(other.series[name][0], values[0], atol=1e-3)
    assert len({r.series["brightness"][0] for _, r in runs}) >= 4


def test_videos_and_pictures_side_by_side(whole):
    assert len(list((whole / "videos").iterdir())) == 4
    for path in (whole / "videos").iterdir():
        with av.open(str(path)) as container:
            sizes = {(frame.width, frame.height) for frame in container.decode(video=0)}
        assert sizes == {(2 * 32 + 4, 16 + 2 * 14)}
    for path in (whole / "pictures").iterdir():
        with Image.open(path) as picture:
            assert picture.height == 2 * (2 * 14 + 16 + 4 + 14 + 4)


def test_a_run_that_cannot_fit_is_refused_with_the_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "memory_limit", lambda devices: 2**12)
    failures = run_all(comparison(), tmp_path)
    assert len(failures) == 8 and not list(tmp_path.iterdir())
    assert all("this run does not fit: each device would hold" in each.reason for each in failures)


def test_prompts_are_embedded_together(tmp_path, monkeypatch):
    """A text encoder that has to be loaded is loaded once, and a bad prompt costs its own runs."""
    asked = []

    def embed_texts(prompts):
        asked.append(prompts)
        return [ValueError("cannot be read")] * len(prompts)

    given = comparison()
    given = dataclasses.replace(
        given, model=dataclasses.replace(given.model, embed_texts=embed_texts)
    )
    failures = run_all(given, tmp_path)
    assert asked == [tuple(PROMPTS)]
    assert [each.reason for each in failures] == ["cannot be read"] * 8


class Stop:
    """Ctrl-C after some chunks."""

    def __init__(self, chunks: int):
        self.left = chunks

    def __call__(self, run):
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def test_an_interrupted_comparison_continues_to_the_same_bytes(whole, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run_all(comparison(), tmp_path, on_chunk=Stop(5))
    assert len(unfinished(comparison(), tmp_path)) == 7
    (kept,) = (tmp_path / "runs").iterdir()
    before = {path.name: path.stat().st_mtime_ns for path in kept.iterdir()}
    # What a process leaves that is killed rather than interrupted.
    torn = run_folder(comparison().runs[1], tmp_path)
    torn = torn.with_name(f".{torn.name}.partial")
    torn.mkdir()
    (torn / "result.json").write_text("{")
    chunks = []
    assert run_all(comparison(), tmp_path, on_chunk=chunks.append) == ()
    assert len(chunks) == 7 * 3
    assert {path.name: path.stat().st_mtime_ns for path in kept.iterdir()} == before
    assert not list((tmp_path / "runs").glob(".*"))
    write_outputs(comparison(), tmp_path, with_videos=False)
    assert figures(tmp_path) == figures(whole)


def test_the_order_of_seeds_changes_nothing(whole):
    before = figures(whole)
    permuted = comparison(seeds=(1, 0, 1))
    assert unfinished(permuted, whole) == []
    write_outputs(permuted, whole)
    assert figures(whole) == before


def test_more_seeds_or_other_settings_are_only_what_is_missing(whole):
    more = unfinished(comparison(seeds=(0, 1, 2)), whole)
    assert {run.seed for run in more} == {2} and len(more) == 4
    assert len(unfinished(comparison(seconds=2.0), whole)) == 8
    for other in (
        toy_model(timestep_shift=3.0),
        dataclasses.replace(MODEL, codec_params=jax.tree.map(lambda x: x + 1, MODEL.codec_params)),
        dataclasses.replace(MODEL, text_encoder="another"),
    ):
        assert len(unfinished(comparison(model=other), whole)) == 8


def test_results_of_other_metrics_are_not_taken(whole, monkeypatch):
    monkeypatch.setattr("vidcache_jax.lab.comparison.METRICS_VERSION", 0)
    assert len(unfinished(comparison(), whole)) == 8


def test_two_names_of_one_policy_are_one_run_and_both_are_shown(tmp_path):
    twice = comparison(
        policies={"one": vj.FullCache(12), "same": vj.FullCache(12)},
        prompts=PROMPTS[:1],
        seeds=(0,),
    )
    assert len(unfinished(twice, tmp_path)) == 1
    chunks = []
    assert run_all(twice, tmp_path, on_chunk=chunks.append) == ()
    assert len(chunks) == 3 and unfinished(twice, tmp_path) == []
    assert [run.label for run, _ in finished(twice, tmp_path)] == ["one", "same"]
    assert "2 of 2 videos are finished" in write_outputs(twice, tmp_path).read_text()


def test_what_another_process_has_finished_meanwhile_is_not_made_again(tmp_path):
    both = comparison(prompts=PROMPTS[:1], seeds=(0,))
    other = dataclasses.replace(both, policies={LABELS[1]: both.policies[LABELS[1]]})
    chunks = []

    def on_chunk(run):
        chunks.append(run.label)
        run_all(other, tmp_path)

    assert run_all(both, tmp_path, on_chunk=on_chunk) == ()
    assert chunks == 3 * [LABELS[0]] and unfinished(both, tmp_path) == []


def test_ctrl_c_while_a_video_is_put_side_by_side(whole, tmp_path, monkeypatch):
    """What a writer keeps of an interrupted video must not be taken for the whole."""
    folder = shutil.copytree(whole, tmp_path / "copy")
    shutil.rmtree(folder / "videos")
    (folder / "report.html").unlink()
    drawn, original = [], side_by_side._grid

    def grid(tiles):
        drawn.append(tiles)
        if len(drawn) == 9 + 4:
            raise KeyboardInterrupt
        return original(tiles)

    monkeypatch.setattr(side_by_side, "_grid", grid)
    with pytest.raises(KeyboardInterrupt):
        write_outputs(comparison(), folder)
    assert len(list((folder / "videos").iterdir())) == 1
    assert (folder / "report.html").exists()
    write_outputs(comparison(), folder)
    names = {path.name for path in (whole / "videos").iterdir()}
    assert {path.name for path in (folder / "videos").iterdir()} == names
    for path in (folder / "videos").iterdir():
        with av.open(str(path)) as container:
            assert sum(1 for _ in container.decode(video=0)) == 9


def test_pictures_of_fewer_policies_do_not_stay(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "copy")
    shown = lambda: {path.name for path in folder.glob("*/*-seed?-*") if path.is_file()}
    before = shown()
    # Of the prompt that is left out everything stays.
    write_outputs(comparison(policies={"full": vj.FullCache(12)}, prompts=PROMPTS[:1]), folder)
    assert len(shown()) == 8 and len(shown() & before) == 4
    write_outputs(comparison(), folder)
    assert shown() == before


def test_failures_are_kept_for_the_next_report(tmp_path):
    runs = comparison().runs
    assert read_failures(comparison(), tmp_path) == ()
    write_failures([Failure(runs[0], "no"), Failure(runs[2], "nö")], tmp_path)
    assert read_failures(comparison(seeds=(0,)), tmp_path) == (Failure(runs[0], "no"),)
    assert [f.reason for f in read_failures(comparison(), tmp_path)] == ["no", "nö"]
    write_failures([], tmp_path)
    assert read_failures(comparison(), tmp_path) == ()
    (tmp_path / "failures.json").write_text("[1]")
    with pytest.raises(ValueError, match="failures.json is damaged"):
        read_failures(comparison(), tmp_path)


def test_a_label_that_the_font_lacks_breaks_no_picture(tmp_path):
    Image.new("RGB", (80, 10)).save(tmp_path / "sheet.png")
    label = "head-forcing:roles=役割.json"
    side_by_side.write_picture({label: tmp_path / "sheet.png"}, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (80, 10 + 2 * 14)


def test_a_bad_prompt_and_a_policy_that_cannot_serve_cost_only_their_own(tmp_path):
    bad = comparison(
        policies={**comparison().policies, "small": vj.FullCache(capacity=6)},
        prompts=("a red elephant", PROMPTS[0]),
        seeds=(0,),
    )
    told = []
    failures = run_all(bad, tmp_path, on_failure=told.append)
    assert list(failures) == told
    assert [(f.run.label, f.run.prompt) for f in failures] == [
        *((label, "a red elephant") for label in bad.policies),
        ("small", PROMPTS[0]),
    ]
    assert "'elephant'" in failures[0].reason and "holds 6" in failures[-1].reason
    report = write_outputs(bad, tmp_path, failures).read_text()
    assert "Could not be made" in report and "elephant" in report and "2 of 6 videos" in report
    assert {run.label for run, _ in finished(bad, tmp_path)} == set(LABELS)


def test_a_damaged_result_is_named(tmp_path):
    one = comparison(policies={"full": vj.FullCache(12)}, prompts=PROMPTS[:1], seeds=(0,))
    run_all(one, tmp_path)
    path = run_folder(one.runs[0], tmp_path) / "result.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "cost": None}))
    with pytest.raises(ValueError, match="result.json is damaged.*remove"):
        write_outputs(one, tmp_path)


@pytest.mark.parametrize("name", ["policies", "prompts", "seeds"])
def test_a_comparison_of_nothing_is_refused(name):
    with pytest.raises(ValueError, match=f"needs {name}"):
        comparison(**{name: {} if name == "policies" else ()})
