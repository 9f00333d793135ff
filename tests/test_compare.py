"""`vidcache compare` and `export-vbench` as a user meets them."""

import json
import subprocess
import sys
from pathlib import Path

import av
import pytest

import vidcache_jax as vj
from checkpoints_convert.__main__ import main as convert
from tests import pipelines
from tests.toy import toy_model
from vidcache_jax import loading
from vidcache_jax.cache import HeadRoles
from vidcache_jax.cli import main
from vidcache_jax.commands import compare
from vidcache_jax.commands.policy_text import read_policy, split_policies
from vidcache_jax.lab import side_by_side, vbench

ROOT = Path(__file__).parents[1]
POLICY = "sliding-window:window_size=6,sink_size=0"


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    """The toy model by name, and no compilation cache on disk."""
    monkeypatch.setattr(loading, "MODELS", {**loading.MODELS, "toy": toy_model})
    monkeypatch.setattr(compare, "enable_compilation_cache", lambda folder: None)


def run(out: Path, *options: str) -> int:
    small = ("--model", "toy", "--seconds", "0.7", "--scale", "1", "--policies", POLICY)
    try:
        return main(["compare", *small, "--out", str(out), *options])
    except SystemExit as exit_:  # how the option parser refuses
        return int(exit_.code or 0)


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("sliding-window", vj.SlidingWindow(sink_size=3)),  # as `vidcache generate` has it
        (POLICY, vj.SlidingWindow(window_size=6)),
        ("sliding-window: window-size = 9, rope=absolute",
         vj.SlidingWindow(window_size=9, sink_size=3, rope="absolute")),
        ("tethercache:tau=0", vj.TetherCache(tau=0.0)),
        ("full", vj.FullCache(capacity=30)),
        ("full:capacity=7", vj.FullCache(capacity=7)),
    ],
)  # fmt: skip
def test_policies_as_text(text, policy):
    assert read_policy(text, 30, toy_model()) == policy


@pytest.mark.parametrize(
    ("texts", "policies"),
    [
        (("sliding-window,tethercache,head-forcing,future-forcing,ispa",),
         ("sliding-window", "tethercache", "head-forcing", "future-forcing", "ispa")),
        (("full:capacity=7,sliding-window:window_size=9,sink_size=0,tethercache", "ispa"),
         ("full:capacity=7", "sliding-window:window_size=9,sink_size=0", "tethercache", "ispa")),
        (("full,", "ispa, tethercache:tau=0"), ("full", "ispa", "tethercache:tau=0")),
        (("full,elephant",), ("full,elephant",)),  # refused as it stands
        (("tethercache:tau=0,full=1",), ("tethercache:tau=0,full=1",)),
    ],
)  # fmt: skip
def test_policies_with_commas_between_them(texts, policies):
    assert split_policies(texts) == policies


@pytest.mark.parametrize("name", vj.POLICIES)
def test_every_policy_is_known_by_its_bare_name(name):
    assert isinstance(read_policy(name, 30, toy_model()), vj.POLICIES[name])


def test_a_role_table_of_another_model_is_refused(tmp_path):
    HeadRoles((("local",),), fingerprint="another").save(tmp_path / "roles.json", {})
    with pytest.raises(ValueError, match=r"roles.json': the role table was made for a model with"):
        read_policy(f"head-forcing:roles={tmp_path / 'roles.json'}", 30, toy_model())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("elephant", "'elephant' is unknown; policies are full, sliding-window"),
        ("tethercache:tu=1", "no option 'tu', it has sink_size, memory_size"),
        ("tethercache:tau", "'tau' is not of the form option=value"),
        ("tethercache:tau=", "not of the form"),
        ("tethercache:tau=x", "tau=x is no float"),
        ("sliding-window:rope=up", "rope=up is no .*relative"),
        ("tethercache:tau=7", "'tethercache:tau=7': tau=7.0 must lie between"),
    ],
)
def test_a_wrong_policy_is_one_clear_error(text, message, capsys):
    with pytest.raises(ValueError, match=message):
        read_policy(text, 30, toy_model())
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--policies", "elephant"], "'elephant' is unknown"),
        (["--prompts", "nowhere.txt"], "cannot read prompts from nowhere.txt"),
        (["--model", "huge"], "no model 'huge'"),
        (["--seconds", "-1"], "seconds=-1.0 must be a positive number"),
    ],
)
def test_bad_input_is_refused_before_any_work(tmp_path, options, message, capsys):
    assert run(tmp_path / "out", *options) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_an_empty_prompt_file_and_an_unwritable_folder(tmp_path, capsys):
    empty = tmp_path / "prompts.txt"
    empty.write_text("\n \n")
    assert run(tmp_path / "out", "--prompts", str(empty)) == 2
    assert "has no prompt; write one a line" in " ".join(capsys.readouterr().err.split())
    assert run(empty / "out") == 2
    assert "Not a directory" in capsys.readouterr().err


def test_prompts_from_a_file_one_of_them_bad_interrupted_and_continued(
    tmp_path, capsys, monkeypatch
):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red elephant\na red circle bounces\n\na blue square bounces\n")
    out = tmp_path / "made" / "here"
    options = ("--prompts", str(prompts), "--seeds", "1", "0")

    def interrupted(*args, **kwargs):
        made = []

        def on_chunk(run):
            made.append(run)
            if len(made) == 3:
                raise KeyboardInterrupt

        return original(*args, **{**kwargs, "on_chunk": on_chunk})

    original = compare.run_all
    monkeypatch.setattr(compare, "run_all", interrupted)
    assert run(out, *options) == 130
    assert "interrupted; 3 videos are missing, the same command goes on" in capsys.readouterr().err
    report = (out / "report.html").read_text()
    assert "1 of 6 videos are finished" in report and "Could not be made" in report

    monkeypatch.setattr(compare, "run_all", original)
    assert run(out, *options) == 1
    printed = capsys.readouterr().err
    assert "5 of 6 videos are to be made, 2 chunks each" in printed
    assert printed.count("unknown words in the prompt: 'elephant'") == 1
    assert "4 of 6 videos are finished" in (out / "report.html").read_text()
    names = {"runs", "videos", "pictures", "chunks.csv", "videos.csv", "policies.csv", "cost.csv",
             "cost.json", "figures.json", "report.html", "comparison.json",
             "failures.json"}  # fmt: skip
    assert {path.name for path in out.iterdir()} == names

    assert main(["export-vbench", str(out), "--read-back"]) == 1
    assert "no *_eval_results.json was found below" in capsys.readouterr().err
    assert main(["export-vbench", str(out)]) == 0
    assert "shortened" not in capsys.readouterr().err
    place = vbench.policy_folder(out, POLICY)
    assert len(list((place / "videos").iterdir())) == 4
    (place / "r_eval_results.json").write_text(json.dumps({"motion_smoothness": [0.875, []]}))
    assert main(["export-vbench", str(out), "--read-back"]) == 0
    assert f"with VBench's scores of {POLICY}" in capsys.readouterr().err
    report = (out / "report.html").read_text()
    assert '<th scope="row">motion_smoothness</th><td>0.875</td>' in report
    assert "Could not be made" in report and "elephant" in report

    # The scores are of what was exported: nothing is laid out over them.
    (tmp_path / "originals.txt").write_text("A\nB_x\nC\n")
    others = ("export-vbench", str(out), "--originals", str(tmp_path / "originals.txt"))
    assert main([*others]) == 2
    assert "move VBench's results out" in " ".join(capsys.readouterr().err.split())
    (place / "r_eval_results.json").write_text("{")
    assert main(["export-vbench", str(out), "--read-back"]) == 2
    assert "is no result of VBench" in capsys.readouterr().err
    assert run(out, *options) == 1, "a damaged score prevents no report"
    assert "r_eval_results.json is no result of VBench" in (out / "report.html").read_text()
    (place / "r_eval_results.json").unlink()
    capsys.readouterr()
    assert main([*others]) == 0
    assert "cannot be names of files, so 2 videos have short ones" in capsys.readouterr().err


def test_ctrl_c_while_videos_are_put_side_by_side(tmp_path, capsys, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(side_by_side, "write_video", interrupted)
    assert run(tmp_path, "--prompts", "a red circle bounces", "--seconds", "0.3") == 130
    printed = capsys.readouterr().err
    assert "1 of 1 videos are to be made, 1 chunk each" in printed
    assert "interrupted while showing what was made; the same command goes on" in printed
    assert (tmp_path / "report.html").exists()
    assert [path for path in tmp_path.rglob("*.partial*")] == []
    monkeypatch.undo()


def test_a_converted_pipeline_is_compared(tmp_path, capsys, quick):
    """With the options that `vidcache generate` has for it; its name is kept for other commands."""
    source = pipelines.diffusers_folder(tmp_path / pipelines.NAME)
    assert convert([str(source), str(tmp_path / "converted")]) == 0
    size = [f"--{name}={pixels}" for name, pixels in pipelines.SIZE.items()]
    out = tmp_path / "out"
    assert main([
        "compare", "--checkpoint", str(tmp_path / "converted"), *size, "--seconds", "0.3",
        "--policies", f"{POLICY},full", "--prompts", "a red fox runs", "--out", str(out),
        "--embedding-cache", str(tmp_path / "embeddings"),
    ]) == 0, capsys.readouterr().err  # fmt: skip
    report = (out / "report.html").read_text()
    assert "2 of 2 videos are finished" in report and "2 cache policies compared on" in report
    assert "Told sprites found" not in report, "its videos are not of the sprite world"
    (video,) = (out / "videos").iterdir()
    with av.open(str(video)) as container:
        # Enlarged to 256 rows, under two lines of caption; two policies and the gap.
        assert container.streams.video[0].height == 256 + 28
        assert container.streams.video[0].width == 2 * 384 + 4
    assert len(list((tmp_path / "embeddings").iterdir())) == 1
    assert main(["export-vbench", str(out)]) == 0
    assert len(list((out / "vbench").glob("*/videos/*.mp4"))) == 2


def test_the_command_line_starts_without_matplotlib():
    program = "import sys, vidcache_jax.cli; print('matplotlib' in sys.modules)"
    run = [sys.executable, "-c", program]
    printed = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "False"


def test_export_of_what_is_no_comparison(tmp_path, capsys):
    assert main(["export-vbench", str(tmp_path)]) == 2
    assert "holds no comparison" in " ".join(capsys.readouterr().err.split())
