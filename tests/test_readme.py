"""Every command and every program in the README and in docs/measured.md is run."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import av
import pytest

from tests import pipelines
from tests.convert.checkpoints import CASE, config_json, save_pt, tensors, wan_folder

ROOT = Path(__file__).parents[1]
README = "\n".join((ROOT / name).read_text() for name in ("README.md", "docs/measured.md"))
# `pip install` is what .ci/run does before the tests; here it is cut off.
INSTALL = re.compile(r"^pip install -e \S+ && ")


def blocks() -> dict[str, str]:
    """Fenced blocks by their marker comment; a fence without one is kept under ''."""
    pattern = r"(?:<!-- ([a-z-]+) -->\n)?```(?:sh|python)\n(.*?)```"
    found: dict[str, str] = {}
    for name, text in re.findall(pattern, README, flags=re.DOTALL):
        found[name] = found.get(name, "") + text
    return found


# Of programs that run for a second: compiled sooner, unoptimised.
HASTY = {"XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"}


def run(command: str, folder: Path, **variables: str) -> str:
    # What one command has compiled the next need not.
    home = folder.parent / "home"
    home.mkdir(exist_ok=True)
    environment = {
        **os.environ,
        **variables,
        "HOME": str(home),
        "JAX_COMPILATION_CACHE_DIR": str(home / ".cache/vidcache_jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    command = INSTALL.sub("", command)
    finished = subprocess.run(
        ["bash", "-euc", command], cwd=folder, env=environment, check=True, timeout=600,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    return finished.stdout


def test_every_block_is_run_by_a_test():
    """The test command itself is what .ci/run runs; adding a block means adding it here."""
    using = {"generate-command", "generate-example", "python-example", "pipeline-command",
             "convert-command", "profile-command", "compare-command",
             "prompts-command", "tpu-pod-command"}  # fmt: skip
    parts = ("bench", "bench-prompts", "bench-tether", "bench-heads", "bench-ispa", "bench-wan",
             "bench-machine", "bench-torch", "study-ispa", "future")  # fmt: skip
    measuring = {f"{part}-command" for part in parts}
    assert set(blocks()) == {"test-command", "training-command", *using, *measuring}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("generate-command", {"video.mp4": 162}),
        ("generate-example", {"night.mp4": 240, "night.png": 0}),
    ],
)
def test_command_makes_its_files(tmp_path, name, files):
    run(blocks()[name], tmp_path)
    for file, frames in files.items():
        assert (tmp_path / file).stat().st_size > 0
        if frames:
            with av.open(str(tmp_path / file)) as container:
                assert sum(1 for _ in container.decode(video=0)) == frames


@pytest.mark.slow
def test_compare_command_in_small(tmp_path):
    """The documented command, shortened to a second; then what else is said of its folder."""
    run(f"{blocks()['compare-command'].strip()} --seconds 1", tmp_path, **HASTY)
    out = tmp_path / "comparison"
    assert "6 of 6 videos are finished" in (out / "report.html").read_text()
    assert len(list((out / "videos").glob("*.mp4"))) == 2
    assert len((out / "videos.csv").read_text().splitlines()) == 1 + 6
    run("vidcache export-vbench comparison", tmp_path)
    assert len(list((out / "vbench").glob("*/videos/*.mp4"))) == 6
    score = {"motion_smoothness": [0.875, []]}
    (out / "vbench" / "tethercache" / "r_eval_results.json").write_text(json.dumps(score))
    run("vidcache export-vbench comparison --read-back", tmp_path)
    assert "motion_smoothness" in (out / "report.html").read_text()


@pytest.mark.slow
def test_study_runs_in_small(tmp_path):
    small = "--videos 2 --seeds 0 --seconds 3 --variants sliding-window:sink_size=0 tethercache"
    run(f"python {ROOT}/scripts/study_policies.py {small} --work-dir . --write study.md", tmp_path)
    report = (tmp_path / "study.md").read_text()
    assert "**3 seconds** of 2 policies, **2 prompts, 1 seed**; together 4 videos" in report
    assert "This is a small run" in report and "(study.png)" in report
    assert (tmp_path / "study.png").stat().st_size > 0
    assert re.search(r"TetherCache's latents drift less.* \| (shows|open|the opposite) \|", report)


def test_python_example(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    source = blocks()["python-example"]
    assert len(source.splitlines()) <= 20
    exec(compile(source, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert printed.startswith("24 frames, cache of")
    assert "(3, 64, 64, 3)" in printed


@pytest.mark.slow
def test_bench_command_runs_in_small(tmp_path):
    """The documented script on one policy, without the minutes of whole runs."""
    command = blocks()["bench-command"].strip()
    script = command.replace("scripts/", f"{ROOT}/scripts/")
    printed = run(f"{script} --policies sliding-window --no-runs", tmp_path)
    for what in ("compilations after the first of 210 chunks", "cache-sized copies in the chunk"):
        assert re.search(rf"{what}[^│]*│ sliding-window │ 0 ", printed), printed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "small", "row"),
    [
        ("bench-prompts-command", "--videos 2 --seconds 1 --policies tethercache", "tethercache"),
        ("bench-tether-command", "--grid 1 2 --rounds 1", "released operations"),
        ("bench-wan-command", "--grid 4 4 --rounds 1 --layers 0", "pass, small DiT +│ float32"),
        ("bench-heads-command", "--videos 1 --seconds 3 --rounds 2", "head-forcing"),
        ("bench-torch-command", "--rounds 1 --threads 1", "chunk"),
    ],
)
def test_other_bench_commands_run_in_small(tmp_path, name, small, row):
    command = INSTALL.sub("", blocks()[name].strip())
    script = command.replace("scripts/", f"{ROOT}/scripts/")
    assert re.search(rf"│ {row} +│ +[\d.]+( ms|%)? +│", run(f"{script} {small}", tmp_path, **HASTY))


@pytest.mark.slow
def test_bench_of_ispa_runs_in_small_and_the_peak_drops(tmp_path):
    command = blocks()["bench-ispa-command"].strip().replace("scripts/", f"{ROOT}/scripts/")
    printed = run(f"{command} --width 32 --rounds 2", tmp_path, **HASTY)
    cell = r" +│ +([\d.]+)"
    rows = re.findall(rf"│ (chunk \d|the transition){cell}{cell}{cell} +│", printed)
    # The second transition of the table is none: it is what lies there between two chunks.
    warm, transition, after, between = (list(map(float, row[1:])) for row in rows[:4])
    freed = sum(warm[:2]) - sum(after[:2])
    # Afterwards a chunk has a rotated copy of the keys of half of the layers.
    assert freed > 50 and warm[2] - after[2] > 0.9 * freed - warm[0] / 4, printed
    assert between[2] < 1.05 * after[0], printed
    assert transition[2] < 1.05 * warm[2], printed
    assert re.search(r"│ afterwards +│ +\d+ +│ +[\d.]+ +│", printed), printed


@pytest.mark.slow
def test_bench_machine_command_in_small(tmp_path):
    """What it prints is what it writes, and that is consistent."""
    small = "--rounds 1 --windows 3 6 --policies sliding-window:window_size=6,sink_size=0"
    printed = run(f"{blocks()['bench-machine-command'].strip()} {small}", tmp_path)
    found = json.loads((tmp_path / "bench.json").read_text())
    (chunk,) = found["chunks"]
    assert chunk["attended"] == 6 and chunk["frames"] == 3 and chunk["seconds"] > 0
    share = chunk["flops"] / chunk["seconds"] / chunk["ceiling"]
    overhead = chunk["seconds"] / chunk["window_seconds"] - 1
    row = rf"│ sliding-window:.*│ 6 +│ {1e3 * chunk['seconds']:.2f} ms │ .*│ {share:.0%} +│ .*"
    assert re.search(row + re.escape(f"│ {overhead:+.1%}"), printed), printed
    assert [each["frames"] for each in found["attention"]] == ["3", "6", "1 to 6"]
    assert found["left_out"].keys() == {"tpu", "gpu", "hopper"}
    assert found["others"]["first_chunk"] > found["others"]["decode"] > 0


@pytest.mark.slow
def test_study_command_runs_in_small(tmp_path):
    command = blocks()["study-ispa-command"].strip().replace("scripts/", f"{ROOT}/scripts/")
    small = "--videos 1 --ratios 0.5 --warmups 3 --chunks 1"
    printed = run(f"{command} {small}", tmp_path, **HASTY)
    for variant in ("ISPA", "no absorption", "no history"):
        assert re.search(rf"│ 3 +│ 0.5 +│ {variant} +│ \d\.\d{{3}} +│", printed), printed


@pytest.mark.slow
def test_profile_command_runs_in_small(tmp_path):
    """Both documented lines, on two prompts and few chunks."""
    profile, generate = blocks()["profile-command"].strip().splitlines()
    (tmp_path / "prompts.txt").write_text("a red circle bounces\na blue square drifts left\n")
    run(f"{profile} --prompts prompts.txt --num-chunks 4 --sampled-chunks 1", tmp_path, **HASTY)
    assert (tmp_path / "heads.png").stat().st_size > 0
    run(f"{generate} --seconds 1", tmp_path)
    assert (tmp_path / "video.mp4").stat().st_size > 0


@pytest.mark.slow
def test_future_commands_run_in_small(tmp_path):
    stability, quality, cost, minutes = blocks()["future-command"].strip().splitlines()
    script = lambda command: command.replace("scripts/", f"{ROOT}/scripts/")
    printed = run(f"{script(stability)} --chunks 3 --pairs 20", tmp_path, **HASTY)
    assert re.search(r"│ all +│ [\d.]+, [\d.]+ +│", printed), printed
    assert (tmp_path / "stability.png").stat().st_size > 0
    printed = run(
        f"{script(quality)} --chunks 8 --first 5 --budget 6 --prompts 'a red circle bounces'",
        tmp_path, **HASTY,
    )  # fmt: skip
    # Stride 1 agrees with itself.
    assert re.search(r"│ 1 +│ 16 +│ [\d.]+, \d+% +│ 1.000, 100% +│", printed), printed
    printed = run(f"{script(cost)} --latent-size 12 8 --budget 6 --strides 2", tmp_path, **HASTY)
    assert re.search(r"│ evict, stride 2 +│ +[\d.]+ +│", printed), printed
    printed = run(f"{script(minutes)} --seconds 1", tmp_path, **HASTY)
    assert re.search(r"│ future-forcing +│ +[\d.]+%? +│", printed), printed


def test_tpu_pod_command_gives_every_worker_the_same_command(tmp_path, monkeypatch):
    """With a gcloud that runs what it is given here, and a vidcache that says what it was given."""
    for name, script in (
        ("gcloud", 'printf "%s\\n" "${@:1:7}"; bash -c "${8#--command=}"'),
        ("vidcache", 'printf "%s\\n" "$@"'),
    ):
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{script}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    command = blocks()["tpu-pod-command"].replace("\\\n", "")
    command = command.replace("scripts/", f"{ROOT}/scripts/")
    given = shlex.split(command)[3:]
    asked = ["bash", "-euc", f'{command.strip()} --prefix "it\'s two"']
    printed = subprocess.run(asked, check=True, stdout=subprocess.PIPE, text=True).stdout
    gcloud = ["compute", "tpus", "tpu-vm", "ssh", "my-slice", "--zone=us-east5-a", "--worker=all"]
    vidcache = ["generate", "--distributed", *given, "--prefix", "it's two"]
    assert printed.splitlines() == [*gcloud, *vidcache]


@pytest.mark.slow
def test_training_command_runs_in_small(tmp_path):
    """The documented command with two steps a stage, exporting elsewhere."""
    command = INSTALL.sub("", blocks()["training-command"].strip())
    assert command.startswith("python scripts/train_tiny.py")
    script = command.replace("scripts/", f"{ROOT}/scripts/")
    small = "--steps 2 --batch-size 2 --work-dir run --export-dir weights"
    run(f"{script} {small}", tmp_path, **HASTY)
    assert (tmp_path / "weights").is_dir()


@pytest.mark.slow
def test_convert_command(tmp_path):
    """The documented names, with a small model behind them."""
    wan_folder(tmp_path / "Wan2.1-T2V-1.3B")
    save_pt(tmp_path / "self_forcing_dmd.pt", {"generator_ema": tensors(CASE.state, "model.")})
    (tmp_path / "config.json").write_text(config_json())
    printed = run(blocks()["convert-command"], tmp_path)
    assert "every tensor has its place" in printed and "bidirectional" in printed
    assert f"{len(CASE.state)} tensors are bit for bit" in printed
    assert (tmp_path / "back" / "diffusion_pytorch_model.safetensors").is_file()


@pytest.mark.slow
def test_pipeline_command(tmp_path):
    """The documented names, with small models behind them and small videos.

    The folder has diffusers' layout, in which a VAE may have fewer levels and compiles sooner.
    """
    pipelines.diffusers_folder(tmp_path / "Wan2.1-T2V-1.3B")
    it = pipelines.transformer()
    save_pt(tmp_path / "self_forcing_dmd.pt", {"generator_ema": it.state_dict()})
    (tmp_path / "config.json").write_text(json.dumps(dict(it.config)))
    command = blocks()["pipeline-command"]
    small = command.replace("--checkpoint", "--height 16 --width 24 --seconds 0.3 --checkpoint")
    assert small.count("--seconds 0.3") == 2
    printed = run(small, tmp_path, **HASTY)
    assert "tensors are bit for bit those of the source" in printed
    for name, frames in (("fox.mp4", 5), ("on.mp4", 5 + 6)):
        with av.open(str(tmp_path / name)) as container:
            assert sum(1 for _ in container.decode(video=0)) == frames
