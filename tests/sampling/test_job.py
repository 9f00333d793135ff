"""A list of prompts becomes a folder of videos, on any mesh and however often it is stopped."""

import functools
import os
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import av
import jax
import numpy as np
import pytest

import vidcache_jax as vj
from tests.test_readme import blocks
from tests.toy import toy_model
from vidcache_jax import loading
from vidcache_jax.cli import main
from vidcache_jax.commands.generate import GenerateArgs, job_of
from vidcache_jax.planning import memory
from vidcache_jax.sampling import job as job_module
from vidcache_jax.sampling.batch import generate_batch, own_videos
from vidcache_jax.sampling.job import SETTINGS
from vidcache_jax.sampling.rollout import Rollout
from vidcache_jax.sampling.session import embed
from vidcache_jax.sharding import Layout, make_mesh, parse_mesh

pytestmark = pytest.mark.usefixtures("quick")
POLICY = vj.SlidingWindow(window_size=7, sink_size=2)
PROMPTS = ("a red circle bounces", "a blue square circles", "a red elephant", "a pink cross",
           "a red circle bounces")  # fmt: skip
MESH = "data=4,heads=2"
ROOT = Path(__file__).parents[2]
PROCESS = """
import os, signal, sys, time
from pathlib import Path
from tests.toy import toy_model
from vidcache_jax import cli, loading
from vidcache_jax.sampling import job

def killed_after_the_first(*args, **kwargs):
    while batches and not list(Path("videos").glob("*.mp4")):
        time.sleep(0.02)
    if batches:
        os.kill(os.getpid(), signal.SIGKILL)
    batches.append(args)
    return generate(*args, **kwargs)

batches, generate = [], job.generate_batch
fate, *command = sys.argv[1:]
if fate == "killed":
    job.generate_batch = killed_after_the_first
loading.MODELS = {"toy": toy_model}
sys.exit(cli.main(command))
"""


@pytest.fixture(autouse=True)
def toy(monkeypatch, tmp_path):
    """The toy model by name, no compilation cache on disk, and a folder to work in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loading, "MODELS", {**loading.MODELS, "toy": toy_model})
    monkeypatch.setattr(
        "vidcache_jax.commands.generate.enable_compilation_cache", lambda folder: None
    )


def run(tmp_path: Path, *options: str, prompts: tuple[str, ...] = PROMPTS) -> int:
    """The README's command, with a small model."""
    (tmp_path / "prompts.txt").write_text("\n\n".join(prompts))
    program, *command = shlex.split(blocks()["prompts-command"])
    assert program == "vidcache" and MESH in command
    small = ("--model", "toy", "--seconds", "0.7", "--window-size", "7", "--sink-size", "2")
    return main([*command, *small, *options])


def said(capsys) -> str:
    return " ".join(capsys.readouterr().err.split())


def videos_in(folder: Path) -> dict[str, np.ndarray]:
    found = {}
    for path in sorted(folder.glob("*.mp4")):
        with av.open(str(path)) as container:
            frames = container.decode(video=0)
            found[path.name] = np.stack([frame.to_ndarray(format="rgb24") for frame in frames])
    return found


def test_a_video_does_not_depend_on_mesh_or_neighbours():
    """Each is what a session makes of the same noise alone on one device."""
    layout = Layout(make_mesh(**parse_mesh(MESH), devices=jax.devices()))
    model, prompts, numbers = toy_model(), PROMPTS[:2] * 2, np.array([5, 2, 0, 1])
    texts = np.stack([embed(model, prompt) for prompt in prompts])
    rollout = Rollout(model.config, model.rollout, POLICY, layout)
    divided = loading.load_model("toy", layout=layout)
    chunks = list(generate_batch(divided, rollout, texts, numbers, seed=7, num_chunks=3))
    # Of all chips of a video one hands it over.
    assert {len(shard.data) for shard in chunks[0].frames.addressable_shards} == {1}
    # Sums over heads are taken in another order.
    same = functools.partial(np.testing.assert_allclose, rtol=0, atol=2e-5)
    session = vj.Session(model, POLICY, prompt=prompts[0])
    session._keys = jax.random.fold_in(jax.random.key(7), numbers[0])[None]
    for chunk, frames in zip(chunks, session.generate(9 / 8), strict=True):
        same(chunk.latents[0], session.latents)
        assert abs(own_videos(chunk.frames)[0].astype(int) - frames).max() <= 1
    rollout = Rollout(model.config, model.rollout, POLICY)
    alone = generate_batch(model, rollout, texts[3:], numbers[3:], seed=7, num_chunks=3)
    for chunk, own in zip(chunks, alone, strict=True):
        same(chunk.latents[3], own.latents[0])
        assert abs(own_videos(chunk.frames)[3].astype(int) - own_videos(own.frames)[0]).max() <= 1


def test_interrupted_continued_extended(tmp_path, capsys, monkeypatch):
    def interrupted(*args, **kwargs):
        yield next(generate(*args, **kwargs))
        raise KeyboardInterrupt

    assert run(tmp_path) == 1
    printed = said(capsys)
    assert "5 of 5 videos are to be made, 2 chunks each" in printed
    assert "no video of prompt 2, 'a red elephant': unknown words" in printed
    folder = tmp_path / "videos"
    made = videos_in(folder)
    assert list(made) == ["0000-a-red-circle-bounces.mp4", "0001-a-blue-square-circles.mp4",
                          "0003-a-pink-cross.mp4", "0004-a-red-circle-bounces.mp4"]  # fmt: skip
    assert {frames.shape[0] for frames in made.values()} == {6}
    assert (made["0000-a-red-circle-bounces.mp4"] != made["0004-a-red-circle-bounces.mp4"]).any()

    (folder / "0001-a-blue-square-circles.mp4").unlink()
    (folder / ".0001-a-blue-square-circles.mp4.partial").mkdir()  # of a process that was killed
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.mp4")}
    generate = job_module.generate_batch
    monkeypatch.setattr(job_module, "generate_batch", interrupted)
    assert run(tmp_path) == 130
    assert "interrupted; the same command goes on" in said(capsys)
    assert len(videos_in(folder)) == 3 and not list(folder.glob(".*"))

    monkeypatch.setattr(job_module, "generate_batch", generate)
    longer = (*PROMPTS, "a green triangle drifts left")
    assert run(tmp_path, prompts=longer) == 1
    assert "3 of 6 videos are to be made" in said(capsys)
    again = videos_in(folder)
    assert len(again) == 5 and not list(folder.glob(".*"))
    for name, frames in made.items():
        np.testing.assert_array_equal(again[name], frames)
    for name, time in before.items():
        assert (folder / name).stat().st_mtime_ns == time

    assert run(tmp_path, "--seed", "1") == 2
    assert "holds videos of another job, which differs in seed" in said(capsys)
    assert run(tmp_path, prompts=PROMPTS[1:]) == 2
    assert "differs in prompts" in said(capsys)
    (folder / SETTINGS).write_text("[]")
    assert run(tmp_path) == 2
    assert "job.json is damaged" in said(capsys)


def test_what_is_finished_stays_when_memory_runs_out(tmp_path, capsys, monkeypatch):
    def too_large(*args, **kwargs):
        if list((tmp_path / "videos").glob("*.mp4")):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 5 bytes")
        return generate(*args, **kwargs)

    generate = job_module.generate_batch
    monkeypatch.setattr(job_module, "generate_batch", too_large)
    assert run(tmp_path, prompts=PROMPTS[:2] * 3) == 2
    assert "a device ran out of memory (RESOURCE_EXHAUSTED: Out of memory" in said(capsys)
    assert len(videos_in(tmp_path / "videos")) == 4
    assert not list((tmp_path / "videos").glob(".*"))


@pytest.mark.parametrize("several", [True, False])
def test_what_cannot_fit_is_refused_before_it_is_loaded(tmp_path, capsys, monkeypatch, several):
    def never(*args):
        raise AssertionError("weights are loaded")

    monkeypatch.setattr(loading, "_on_mesh", never)
    monkeypatch.setattr(memory, "memory_limit", lambda devices: 2**12)
    (tmp_path / "prompts.txt").write_text(PROMPTS[0])
    prompts = ["--prompts", "prompts.txt", "--mesh", MESH] if several else []
    assert main(["generate", "--model", "toy", "--seconds", "0.7", *prompts]) == 2
    printed = said(capsys)
    assert "this run does not fit: each device would hold 0.00 GiB of weights" in printed
    assert "and has 0.00 GiB, " in printed
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.txt"]


def start_processes(mesh: str, *fates: str) -> list[subprocess.Popen[str]]:
    """One job in several processes of one device each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    small = ("--model", "toy", "--seconds", "0.7", "--window-size", "7", "--sink-size", "2")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu",
                   "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # fmt: skip
    return [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, fate, "generate", *small, "--prompts", "prompts.txt",
             "--mesh", mesh, "--distributed",
             "--coordinator", f"127.0.0.1:{port}", "--num-processes", str(len(fates)),
             "--process-id", str(number)],
            stderr=subprocess.PIPE, text=True, env=environment,
        )
        for number, fate in enumerate(fates)
    ]  # fmt: skip


def test_several_processes_one_of_which_is_killed(tmp_path):
    """The other says so and ends, what is finished stays, and the same command goes on.

    First two processes divide the heads, then four divide videos and heads. This one, with eight
    devices, makes the same files, byte for byte.
    """
    prompts = (PROMPTS[0], PROMPTS[2], PROMPTS[3], PROMPTS[1])
    assert run(tmp_path, "--out", "alone", prompts=prompts) == 1
    survivor, victim = start_processes("heads=2", "whole", "killed")
    _, printed = victim.communicate(timeout=240)
    assert victim.returncode == -signal.SIGKILL, printed
    _, printed = survivor.communicate(timeout=60)
    assert survivor.returncode == 3, printed
    printed = " ".join(printed.split())
    assert "process 0 of 2 cannot go on" in printed and "start the same command again" in printed
    folder, first = tmp_path / "videos", "0000-a-red-circle-bounces.mp4"
    assert {path.name for path in folder.iterdir()} == {SETTINGS, first}
    before = (folder / first).stat().st_mtime_ns

    for number, process in enumerate(start_processes("data=2,heads=2", *["whole"] * 4)):
        _, printed = process.communicate(timeout=240)
        assert process.returncode == 1, printed
        assert ("3 of 4 videos are to be made" in printed) == (number == 0)
    assert (folder / first).stat().st_mtime_ns == before

    made = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert len(made) == 1 + 3
    assert made == {path.name: path.read_bytes() for path in (tmp_path / "alone").iterdir()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--process-id", "1"], "--process-id is for several hosts; add --distributed"),
        (["--mesh", "data=3"], "takes 3 devices, but there are 8"),
        (["--mesh", "heads=8"], "2 attention heads do not divide over heads = 8"),
        (["--mesh", "data=8", "--shard-weights"], "give a mesh with heads=N or sequence=N"),
        (["--mesh", "width=8"], "'width=8' is not one of data=N"),
        (["--prompt", "a red circle"], "--prompt is for one video; leave it out"),
        (["--contact-sheet", "a.png"], "--contact-sheet is for one video"),
        (["--policy", "full", "--capacity", "3"], "holds 3 latent frames"),
        (["--policy", "head-forcing"], "a table that `vidcache profile-heads` wrote"),
        (["--prompts", os.devnull], "has no prompt; write one a line"),
        (["--prompts", "/none.txt"], "cannot read prompts from /none.txt"),
        (["--out", "/dev/null"], "/dev/null"),
    ],
)
def test_bad_input_is_one_clear_error(tmp_path, capsys, options, message):
    (tmp_path / "prompts.txt").write_text(PROMPTS[0])
    given = ["--prompts", "prompts.txt", "--seconds", "0.7", "--model", "toy"]
    assert main(["generate", *given, *options]) == 2
    printed = said(capsys)
    assert message in printed and "JAX" not in printed
    assert not (tmp_path / "videos").exists()


def test_options_of_jobs_need_prompts(capsys):
    assert main(["generate", "--model", "toy", "--mesh", MESH]) == 2
    assert "--mesh is for several videos; give --prompts as well" in said(capsys)


def test_by_default_each_device_makes_its_own_video(tmp_path):
    (tmp_path / "prompts.txt").write_text(PROMPTS[0])
    job = job_of(GenerateArgs(prompts=tmp_path / "prompts.txt", model="toy"), POLICY, [])
    assert job.rollout.layout.mesh is not None
    assert dict(job.rollout.layout.mesh.shape) == {"data": 8, "sequence": 1, "heads": 1}
    assert job.folder == Path("videos")
