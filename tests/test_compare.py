"""`vidcache compare` and `export-vbench` as a user meets them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import vidcache_jax as vj
from tests.toy import toy_model
from vidcache_jax import loading
from vidcache_jax.cache import HeadRoles
from vidcache_jax.cli import main
from vidcache_jax.commands import compare
from vidcache_jax.commands.policy_text import read_policy
from vidcache_jax.lab import vbench

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
    assert "interrupted; 5 videos are missing, the same command goes on" in capsys.readouterr().err
    assert "1 of 6 videos are finished" in (out / "report.html").read_text()

    monkeypatch.setattr(compare, "run_all", original)
    assert run(out, *options) == 1
    printed = capsys.readouterr().err
    assert "5 of 6 videos are to be made, 2 chunks each" in printed
    assert printed.count("unknown words in the prompt: 'elephant'") == 1
    assert "4 of 6 videos are finished" in (out / "report.html").read_text()
    names = {"runs", "videos", "pictures", "chunks.csv", "videos.csv", "policies.csv", "cost.csv",
             "figures.json", "report.html", "comparison.json"}  # fmt: skip
    assert {path.name for path in out.iterdir()} == names

    assert main(["export-vbench", str(out)]) == 0
    place = vbench.policy_folder(out, POLICY)
    assert len(list((place / "videos").iterdir())) == 4
    (place / "r_eval_results.json").write_text(json.dumps({"motion_smoothness": [0.875, []]}))
    assert main(["export-vbench", str(out), "--read-back"]) == 0
    assert "<td>motion_smoothness</td><td>0.875</td>" in (out / "report.html").read_text()


def test_the_command_line_starts_without_matplotlib():
    program = "import sys, vidcache_jax.cli; print('matplotlib' in sys.modules)"
    run = [sys.executable, "-c", program]
    printed = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "False"


def test_export_of_what_is_no_comparison(tmp_path, capsys):
    assert main(["export-vbench", str(tmp_path)]) == 2
    assert "holds no comparison" in " ".join(capsys.readouterr().err.split())
