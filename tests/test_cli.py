"""The command line as a user meets it: a video, one clear error, or a clean stop."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import av
import jax
import pytest
import tyro
from PIL import Image

from checkpoints_convert.__main__ import main as convert
from tests import pipelines
from vidcache_jax.cache import ISPA, POLICIES, HeadRoles, SlidingWindow
from vidcache_jax.cli import main
from vidcache_jax.commands.generate import GenerateArgs
from vidcache_jax.commands.policy_option import with_policy_options
from vidcache_jax.loading import load_model
from vidcache_jax.models.fingerprint import fingerprint

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(autouse=True)
def restore_compilation_cache():
    """The command sets JAX's compilation cache; the other tests keep theirs."""
    names = (
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    )
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("compiled"))


PACKAGE_TOML = Path(__file__).parents[1] / "pyproject.toml"


def run(tmp_path: Path, compiled: str, *options: str) -> int:
    out = [] if "--out" in options else ["--out", str(tmp_path / "video.mp4")]
    try:
        return main(["generate", *options, *out, "--compilation-cache", compiled])
    except SystemExit as exit_:  # how the option parser refuses
        return int(exit_.code or 0)


def frames_in(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


@pytest.mark.parametrize("policy", POLICIES)
def test_makes_a_video_and_a_contact_sheet(tmp_path, compiled, capsys, policy):
    sheet = tmp_path / "sheet.png"
    options = ("--seconds", "1", "--policy", policy, "--contact-sheet", str(sheet))
    assert run(tmp_path, compiled, *options) == 0
    assert frames_in(tmp_path / "video.mp4") == 9
    with Image.open(sheet) as picture:
        assert picture.width > 6 * 64
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("9 frames = 1.1 s of video in ")
    assert "Counted: pixel frames; text encoding" in last


def test_hyper_parameters_are_options(tmp_path, compiled):
    options = ("--seconds", "0.3", "--window-size", "8", "--sink-size", "2", "--rope", "absolute")
    assert run(tmp_path, compiled, *options) == 0
    with av.open(str(tmp_path / "video.mp4")) as container:
        made_by = container.metadata["comment"]
    assert "SlidingWindow(window_size=8, sink_size=2, rope='absolute')" in made_by


def test_ispa_takes_the_options_of_its_window():
    args_type = with_policy_options(GenerateArgs, "ispa")
    args: Any = tyro.cli(args_type, args=["--window-size", "9", "--select", "last", "--affine"])
    base = SlidingWindow(window_size=9, sink_size=3)
    assert args.policy == ISPA(base, select="last", affine=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompt", "a crimson circle eats"], ["'crimson'", "'eats'", "knows:", "triangle"]),
        (["--prompt", ""], ["names no sprite"]),
        (["--seconds", "0"], ["seconds=0", "positive"]),
        (["--seconds", "-2"], ["seconds=-2", "positive"]),
        (["--window-size", "4", "--sink-size", "2"], ["too few for a chunk of 3"]),
        (["--window-size", "6", "--sink-size", "9"], ["sink_size=9", "window_size=6"]),
        (["--policy", "full", "--capacity", "8", "--seconds", "2"], ["holds 8", "needs 18"]),
        (["--policy", "elephant"], ["'elephant'", "sliding-window"]),
        (["--policy"], ["policies are"]),
        (["--model", "huge"], ["'huge'", "tiny"]),
        (["--checkpoint", "/nonexistent"], ["no model '/nonexistent'", "checkpoints_convert"]),
        (["--checkpoint", "/usr", "--denoise-timesteps", "1000", "500", "--timestep-shift", "3"],
         ["/usr is no converted pipeline", "checkpoints_convert"]),
        (["--prefix", "/nonexistent.png"], ["no file /nonexistent.png"]),
        (["--out", "/nonexistent/video.mp4"], ["no directory"]),
        (["--out", "/dev"], ["directory"]),
        (["--out", "video.gif"], [".mp4"]),
        (["--policy", "head-forcing", "--roles", "/none.json"], ["No such file", "/none.json"]),
        (["--policy", "head-forcing", "--roles", str(PACKAGE_TOML)], ["holds no role table"]),
        (["--policy", "head-forcing", "--episodic-size", "1"], ["episodic_size=1", "at least 2"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)  # fmt: skip
def test_bad_input_is_one_clear_error(tmp_path, compiled, capsys, options, message):
    assert run(tmp_path, compiled, *options) == 2
    printed = " ".join(capsys.readouterr().err.split())
    for part in message:
        assert part in printed
    assert not list(tmp_path.iterdir())


def test_an_image_and_a_video_begin_a_video(tmp_path, compiled, capsys):
    """A square stays where it was in the first frame; then the file made so is continued."""
    image = Image.new("RGB", (128, 64), "white")
    image.save(tmp_path / "image.png")
    options = ("--seconds", "0.3", "--prefix", str(tmp_path / "image.png"))
    assert run(tmp_path, compiled, *options, "--scale", "1") == 0
    said = capsys.readouterr().err
    assert "1 frames at 8 FPS, scaled and cropped to 64 x 64; the video begins with 3" in said
    with av.open(str(tmp_path / "video.mp4")) as container:
        shown = [frame.to_ndarray(format="rgb24").mean() for frame in container.decode(video=0)]
    assert len(shown) == 6 and min(shown[:3]) > 150
    options = ("--seconds", "1", "--prefix", str(tmp_path / "video.mp4"), "--policy", "full")
    assert run(tmp_path, compiled, *options, "--out", str(tmp_path / "longer.mp4")) == 0
    assert "the last 6 of them" in capsys.readouterr().err
    assert frames_in(tmp_path / "longer.mp4") == 6 + 9


def test_a_pipeline_of_pytorch_makes_a_video(tmp_path, compiled, capsys):
    """From diffusers' and transformers' folders to an mp4: convert, then generate."""
    source = pipelines.diffusers_folder(tmp_path / pipelines.NAME)
    assert convert([str(source), str(tmp_path / "converted"), "--dtype", "bfloat16"]) == 0
    Image.new("RGB", (30, 20), "green").save(tmp_path / "image.png")
    size = [f"--{name}={pixels}" for name, pixels in pipelines.SIZE.items()]
    options = ("--checkpoint", str(tmp_path / "converted"), *size, "--seconds", "0.3", "--prompt",
               "a red fox runs through the snow", "--prefix", str(tmp_path / "image.png"),
               "--embedding-cache", str(tmp_path / "embeddings"))  # fmt: skip
    assert run(tmp_path, compiled, *options) == 0, capsys.readouterr().err
    assert "6 frames = 0.4 s of video" in capsys.readouterr().err
    with av.open(str(tmp_path / "video.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert container.streams.video[0].average_rate == 16
        assert "converted, SlidingWindow" in container.metadata["comment"]
    # The image fills the first chunk of 5, the next has 6; enlarged to 256 rows.
    assert [frame.shape for frame in frames] == [(256, 384, 3)] * 11
    assert len(list((tmp_path / "embeddings").iterdir())) == 1


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        (HeadRoles.uniform("memory", 6, 4), None),
        (HeadRoles.uniform("memory", 6, 4, "0123"), "fingerprint 0123"),
        (HeadRoles.uniform("memory", 6, 2), "2 heads a layer, the model 4"),
        (HeadRoles.uniform("memory", 5, 4), "5 layers, the model 6"),
    ],
)
def test_roles_come_from_a_file_and_must_fit_the_model(tmp_path, compiled, capsys, roles, message):
    roles.save(tmp_path / "roles.json", {})
    options = ("--policy", "head-forcing", "--roles", str(tmp_path / "roles.json"))
    assert run(tmp_path, compiled, *options, "--seconds", "0.3") == (2 if message else 0)
    if message:
        assert message in " ".join(capsys.readouterr().err.split())


def test_the_built_in_models_roles_are_its_own():
    model = load_model("tiny")
    assert model.head_roles is not None
    assert model.head_roles.shape == (model.config.num_layers, model.config.num_heads)
    model.head_roles.check_model(fingerprint(model.params))
    assert len(set(model.example_prompts)) == 20
    for prompt in model.example_prompts:
        model.embed_text(prompt)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num-chunks", "4"], "num_chunks=4 leaves fewer than 3 chunks"),
        (["--prompts", "/none.txt"], "/none.txt"),
        (["--prompts", os.devnull], "no prompts"),
        (["--out", "/nonexistent/roles.json"], "no directory"),
        (["--window-size", "3"], "too few for a chunk of 3"),
        (["--model", "huge"], "'huge'"),
    ],
)
def test_bad_input_to_profile_heads(tmp_path, monkeypatch, compiled, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    try:
        status = main(["profile-heads", *options, "--compilation-cache", compiled])
    except SystemExit as exit_:
        status = exit_.code
    assert status == 2 and not list(tmp_path.iterdir())
    assert message in " ".join(capsys.readouterr().err.replace("│", "").split())


def test_unknown_command_and_help(capsys):
    assert main(["paint"]) == 2
    assert "no command 'paint'" in capsys.readouterr().err
    assert main([]) == 0
    assert "generate" in capsys.readouterr().out
    with pytest.raises(SystemExit) as exit_:
        main(["generate", "--policy", "full", "--help"])
    assert exit_.value.code == 0
    assert "--capacity" in capsys.readouterr().out


def test_interrupt_keeps_a_video_that_plays(tmp_path, compiled):
    out = tmp_path / "video.mp4"
    command = [sys.executable, "-m", "vidcache_jax", "generate", "--seconds", "36000",
               "--out", str(out), "--compilation-cache", compiled]  # fmt: skip
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"}
    )
    partial = tmp_path / ".video.mp4.partial"
    deadline = time.monotonic() + 120
    while not (partial.exists() and partial.stat().st_size > 4096):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 130, printed
    assert "interrupted after" in printed
    assert frames_in(out) >= 3
    assert [path.name for path in tmp_path.iterdir()] == ["video.mp4"]
