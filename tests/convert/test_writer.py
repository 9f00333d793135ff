"""Converted folders: whole or not there, loadable sharded, in bounded memory, verified."""

import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from checkpoints_convert import (
    CheckpointError,
    convert,
    convert_dit,
    load_checkpoint,
    open_dit,
    save_checkpoint,
    verify,
)
from checkpoints_convert.stacks import LazyLeaf
from tests.convert.checkpoints import CASE, save_pt, tensors, wan_folder
from vidcache_jax.checkpoint import read_info, reader, restore_params
from vidcache_jax.checkpoint.paths import by_path
from vidcache_jax.checkpoint.reader import read_part
from vidcache_jax.models.wan_dit import abstract_params
from vidcache_jax.testing import same_bits

CONFIG = CASE.config


def assert_same(tree, expected):
    assert jax.tree.all(jax.tree.map(same_bits, tree, expected))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A converted checkpoint; not to be changed."""
    path = tmp_path_factory.mktemp("converted")
    convert(open_dit(wan_folder(path / "Wan")), path / "dit")
    return path / "dit"


def test_params_config_and_info(folder):
    params, config, info = load_checkpoint(folder)
    assert_same(params, CASE.params)
    assert config == CONFIG
    assert (info.kind, info.dtype, info.family, info.is_causal) == ("dit", "float32", "Wan", False)
    assert info == read_info(folder)
    for source in info.sources:
        content = (folder.parent / "Wan" / source.name).read_bytes()
        assert source.sha256 == hashlib.sha256(content).hexdigest()
    assert [s.name for s in info.sources] == ["diffusion_pytorch_model.safetensors", "config.json"]


def test_what_is_known_of_the_source_is_kept(tmp_path):
    path = save_pt(tmp_path / "self_forcing_dmd.pt", {"generator_ema": tensors(CASE.state)})
    convert(open_dit(path, config=CONFIG), tmp_path / "dit", dtype=jnp.bfloat16)
    params, _, info = load_checkpoint(tmp_path / "dit")
    assert_same(params, convert_dit(CASE.state, CONFIG, dtype=jnp.bfloat16))
    assert (info.is_causal, info.frames_per_chunk, info.timestep_shift) == (True, 3, 5.0)
    assert info.denoise_timesteps == (1000, 750, 500, 250)
    assert (info.picked, info.dtype) == ("generator_ema", "bfloat16")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_loaded_in_another_dtype(folder, dtype):
    params, _, _ = load_checkpoint(folder, dtype=dtype)
    assert_same(params, jax.tree.map(lambda leaf: leaf.astype(dtype), CASE.params))


def test_loaded_sharded(folder, monkeypatch):
    """Each of eight devices reads and holds its own part; together they are the parameters."""
    read: dict[str, list[int]] = {}

    def counting(folder, name, array, part=...):
        values = read_part(folder, name, array, part)
        read.setdefault(name, []).append(values.size)
        return values

    monkeypatch.setattr(reader, "read_part", counting)
    mesh = jax.make_mesh((8,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec

    def sharding(leaf):
        wide = [i for i, size in enumerate(leaf.shape) if size % 8 == 0]
        axes = ["model" if wide and i == wide[0] else None for i in range(len(leaf.shape))]
        return jax.sharding.NamedSharding(mesh, spec(*axes))

    shardings = jax.tree.map(sharding, abstract_params(CONFIG))
    params, _, _ = load_checkpoint(folder, sharding=shardings)
    assert_same(params, CASE.params)
    # Of what is divided nobody reads the whole, nor anything twice: a process with one of the
    # devices reads an eighth.
    divided = by_path(jax.tree.map(lambda one: not one.is_fully_replicated, shardings))
    for name, leaf in by_path(params).items():
        assert read[name] == ([leaf.size // 8] * 8 if divided[name] else [leaf.size]), name
    kernel = params["blocks"]["self_attn"]["q"]["kernel"]
    assert kernel.sharding == shardings["blocks"]["self_attn"]["q"]["kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(3, 3, 24)}
    replicated, _, _ = load_checkpoint(folder, sharding=jax.sharding.NamedSharding(mesh, spec()))
    assert len(replicated["head"]["modulation"].sharding.device_set) == 8


def test_orbax_reads_it_without_us(folder):
    with ocp.StandardCheckpointer() as checkpointer:
        assert_same(checkpointer.restore(folder / "params"), CASE.params)


def test_params_in_memory(tmp_path):
    save_checkpoint(tmp_path / "mine", CASE.params, CONFIG)
    params, config, info = load_checkpoint(tmp_path / "mine")
    assert_same(params, CASE.params)
    assert config == CONFIG and info.sources == ()


def test_a_layer_is_read_when_it_is_written(tmp_path, monkeypatch):
    """Never two layers of a large stack at once, whatever the depth."""
    monkeypatch.setattr("checkpoints_convert.writer._CHUNK_BYTES", 1024)
    opened, seen = open_dit(wan_folder(tmp_path / "Wan")), []
    own_rows = LazyLeaf.rows

    def rows(leaf, rows_at_once):
        seen.append((leaf.path, rows_at_once))
        yield from own_rows(leaf, rows_at_once)

    monkeypatch.setattr(LazyLeaf, "rows", rows)
    convert(opened, tmp_path / "dit")
    at_once = dict(seen)
    assert len(at_once) == len(seen) == len(jax.tree.leaves(CASE.params))
    assert at_once["blocks/ffn_0/kernel"] == at_once["blocks/self_attn/q/kernel"] == 1
    assert at_once["blocks/ffn_0/bias"] == 3
    assert_same(load_checkpoint(tmp_path / "dit")[0], CASE.params)


def test_verify(folder, tmp_path):
    opened = open_dit(folder.parent / "Wan")
    assert verify(opened, folder) == len(CASE.state)
    # The same files, converted otherwise: what a flipped bit would look like.
    state = dict(CASE.state)
    state["blocks.1.ffn.2.weight"] = np.nextafter(state["blocks.1.ffn.2.weight"], np.float32(9))
    info = read_info(folder)
    save_checkpoint(tmp_path / "other", convert_dit(state, CONFIG), info)
    with pytest.raises(CheckpointError, match=r"blocks/ffn_2/kernel layer 1 differs"):
        verify(opened, tmp_path / "other")


def test_verify_wants_the_same_files(folder, tmp_path):
    state = CASE.state | {"head.head.bias": CASE.state["head.head.bias"] + 1}
    with pytest.raises(CheckpointError, match="converted from other files"):
        verify(open_dit(wan_folder(tmp_path / "Wan", state)), folder)


@pytest.mark.parametrize("there", ["folder", "file", "broken link"])
def test_an_existing_name_is_left_alone(tmp_path, there):
    out = tmp_path / "dit"
    if there == "folder":
        out.mkdir()
    elif there == "file":
        out.write_text("mine")
    else:
        out.symlink_to(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"dit exists already; remove it"):
        save_checkpoint(out, CASE.params, CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["dit"]


def test_a_place_that_cannot_be_written(tmp_path):
    with pytest.raises(CheckpointError, match=r"no folder .*nowhere.*create it"):
        save_checkpoint(tmp_path / "nowhere" / "dit", CASE.params, CONFIG)
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="no folder .*file"):
        save_checkpoint(tmp_path / "file" / "dit", CASE.params, CONFIG)


def test_too_little_space_is_said_before_anything_is_written(tmp_path):
    """14 billion parameters, ten thousand times; as an array of strides zero."""
    huge = np.broadcast_to(np.float32(1), (10_000, 14_000_000_000))
    with pytest.raises(CheckpointError, match=r"needs 560000\.0 GB and the disk has .* GB free"):
        save_checkpoint(tmp_path / "dit", {"x": huge}, CONFIG)
    assert not list(tmp_path.iterdir())


def test_two_at_once(tmp_path):
    """The second is refused, and does not touch what the first writes."""
    partial = tmp_path / ".dit.partial"
    partial.mkdir()
    (partial / "first").touch()
    lock = os.open(partial, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(CheckpointError, match="another process is writing"):
        save_checkpoint(tmp_path / "dit", CASE.params, CONFIG)
    assert (partial / "first").exists()
    os.close(lock)
    # As if the first had been killed.
    save_checkpoint(tmp_path / "dit", CASE.params, CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["dit"]


PROGRAM = """
import resource, sys
from checkpoints_convert import CheckpointError, convert, open_dit
how, source, out = sys.argv[1:]
if how == "kill":
    def stage(what, nbytes):
        def progress(done):
            if what == "converting":
                print("writing", flush=True)
                sys.stdin.readline()
        return progress
    convert(open_dit(source), out, stage=stage)
else:
    # As a full disk does, this fails in the middle of a write.
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, 2_000))
    try:
        convert(open_dit(source), out)
    except CheckpointError as error:
        print(error)
"""


def start(how: str, tmp_path: Path) -> subprocess.Popen:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", PROGRAM, how, str(tmp_path / "Wan"), str(tmp_path / "dit")]
    return subprocess.Popen(command, cwd=root, text=True, stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_conversion_leaves_nothing_and_can_be_repeated(tmp_path, sent):
    wan_folder(tmp_path / "Wan")
    process = start("kill", tmp_path)
    assert process.stdout is not None and process.stdout.readline() == "writing\n"
    process.send_signal(sent)
    process.communicate()
    assert process.returncode != 0
    assert not (tmp_path / "dit").exists()
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ([".dit.partial", "Wan"] if sent == signal.SIGKILL else ["Wan"])
    convert(open_dit(tmp_path / "Wan"), tmp_path / "dit")
    assert_same(load_checkpoint(tmp_path / "dit")[0], CASE.params)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Wan", "dit"]


def test_a_disk_that_fills_up(tmp_path):
    wan_folder(tmp_path / "Wan")
    output, errors = start("full", tmp_path).communicate()
    assert re.search(r"cannot write .*dit: .*OUT_OF_RANGE.*make room", output), output + errors
    assert [path.name for path in tmp_path.iterdir()] == ["Wan"]


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("checkpoint.json", None, "is not a converted checkpoint"),
        ("checkpoint.json", "{", "is not a converted checkpoint"),
        ("checkpoint.json", "[" * 100_000, "is not a converted checkpoint"),
        ("checkpoint.json", "[]", "format 1"),
        ("checkpoint.json", '{"format": 2}', "format 1"),
        ("checkpoint.json", '{"format": 1}', "damaged"),
        ("params/manifest.ocdbt", None, "cannot read"),
        ("params/manifest.ocdbt", "x", "cannot read"),
    ],
)
def test_a_damaged_folder(folder, tmp_path, name, content, what):
    shutil.copytree(folder, tmp_path / "dit")
    path = tmp_path / "dit" / name
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(CheckpointError, match=what) as error:
        load_checkpoint(tmp_path / "dit")
    assert str(tmp_path / "dit") in str(error.value)


def test_lost_pieces_are_no_zeros(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "dit")
    for path in (tmp_path / "dit" / "params").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="convert again"):
        load_checkpoint(tmp_path / "dit")


def test_a_config_that_is_not_of_the_weights(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "dit")
    info = tmp_path / "dit" / "checkpoint.json"
    fields = json.loads(info.read_text())
    fields["config"]["ffn_dim"] = 8
    info.write_text(json.dumps(fields))
    with pytest.raises(CheckpointError, match=r"differ in \['blocks/ffn_0/bias'.*convert again"):
        load_checkpoint(tmp_path / "dit")


def test_restore_of_another_tree(folder):
    abstract = {"only": jax.ShapeDtypeStruct((3,), jnp.float32)}
    with pytest.raises(CheckpointError, match="only"):
        restore_params(folder, abstract)
