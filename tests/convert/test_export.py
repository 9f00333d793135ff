"""Back to PyTorch names: the bits of the source, in files that diffusers loads."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from safetensors.numpy import load_file

from checkpoints_convert import (
    FAMILIES,
    CheckpointError,
    convert,
    convert_dit,
    export,
    invert_dit,
    open_dit,
)
from checkpoints_convert.__main__ import main
from tests.convert.checkpoints import CASE, wan_folder
from tests.models.cases import case
from vidcache_jax.testing import same_bits

STATE, CONFIG = CASE.state, CASE.config
HALF = {name: x.astype(jnp.bfloat16) for name, x in STATE.items()}


def assert_same_state(given, expected):
    assert given.keys() == expected.keys()
    wrong = [name for name in expected if not same_bits(given[name], expected[name])]
    assert not wrong


def load_all(folder):
    state = {}
    for path in folder.glob("*.safetensors"):
        state |= load_file(path)
    return state


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A converted bfloat16 checkpoint; not to be changed."""
    path = tmp_path_factory.mktemp("converted")
    convert(open_dit(wan_folder(path / "Wan", HALF)), path / "dit")
    return path / "dit"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("patch_size", [(1, 2, 2), (1, 1, 3)])
def test_in_memory_there_and_back(family, patch_size):
    """Through the names of both families, also where a patch is no square."""
    it = case(patch_size=patch_size)
    named = invert_dit(it.params, it.config, FAMILIES[family])
    params = convert_dit(named, it.config)
    assert_same_state(invert_dit(params, it.config, FAMILIES["wan"]), it.state)


@pytest.mark.parametrize("shard_bytes", [1 << 30, 20_000])
def test_wan_files_have_the_bits_of_the_source(folder, tmp_path, shard_bytes):
    export(folder, tmp_path / "Wan", FAMILIES["wan"], shard_bytes=shard_bytes)
    assert_same_state(load_all(tmp_path / "Wan"), HALF)
    shards = [path.stat().st_size for path in (tmp_path / "Wan").glob("*.safetensors")]
    assert len(shards) == 1 if shard_bytes > 1 << 20 else len(shards) > 2
    assert max(shards) < max(shard_bytes, 20_000) + 20_000
    # And they are a checkpoint like any other, with its config.
    again = open_dit(tmp_path / "Wan")
    assert again.config == CONFIG and again.tensors.keys() == STATE.keys()


@pytest.mark.parametrize("shard_bytes", [1 << 30, 20_000])
def test_diffusers_loads_what_is_exported_for_it(folder, tmp_path, shard_bytes):
    export(folder, tmp_path / "model", FAMILIES["diffusers"], shard_bytes=shard_bytes)
    loaded: Any = WanTransformer3DModel.from_pretrained(
        tmp_path / "model", output_loading_info=True
    )
    model, report = loaded
    assert not any(report.values()), report
    own = {name: x.float().numpy() for name, x in model.state_dict().items()}
    named = invert_dit(CASE.params, CONFIG, FAMILIES["diffusers"])
    assert own.keys() == named.keys()
    for name, x in named.items():
        np.testing.assert_array_equal(own[name], x.astype(jnp.bfloat16).astype(np.float32))
    assert model.config.num_attention_heads == CONFIG.num_heads
    # Saved by diffusers and converted again, nothing is lost.
    model.to(torch.bfloat16).save_pretrained(tmp_path / "again")
    convert(open_dit(tmp_path / "again"), tmp_path / "dit")
    export(tmp_path / "dit", tmp_path / "Wan", FAMILIES["wan"])
    assert_same_state(load_all(tmp_path / "Wan"), HALF)


def test_export_refuses_what_is_no_converted_folder(folder, tmp_path):
    with pytest.raises(CheckpointError, match="is not a converted checkpoint"):
        export(folder.parent / "Wan", tmp_path / "out", FAMILIES["wan"])
    with pytest.raises(CheckpointError, match="exists already"):
        export(folder, folder.parent / "Wan", FAMILIES["wan"])
    assert not list(tmp_path.iterdir())


def test_the_command_line(tmp_path, capsys):
    source, out, back = (str(tmp_path / name) for name in ("Wan", "dit", "back"))
    wan_folder(tmp_path / "Wan")
    assert main([source, "--dry-run"]) == 0
    said = capsys.readouterr().out
    for fact in ("head.modulation", "1 x 2 x 24", "names: Wan", "bidirectional", "3 layers",
                 f"{len(STATE)} float32",
                 "every tensor has its place"):  # fmt: skip
        assert fact in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Wan"]
    assert main([source, out, "--dtype", "bfloat16", "--verify"]) == 0
    assert f"{len(STATE)} tensors are bit for bit" in capsys.readouterr().out
    assert main([out, back, "--export", "wan"]) == 0
    assert_same_state(load_all(tmp_path / "back"), HALF)
    assert main([source, out, "--verify"]) == 0


def test_the_command_line_explains_failure(tmp_path, capsys):
    wan_folder(tmp_path / "Wan", {name: x for name, x in STATE.items() if "head" not in name})
    assert main([str(tmp_path / "Wan"), "--dry-run"]) == 2
    assert "missing: head/modulation" in capsys.readouterr().err
    assert main([str(tmp_path / "Wan"), str(tmp_path / "dit")]) == 2
    assert "missing: head/head/kernel" in capsys.readouterr().err
    wan_folder(tmp_path / "Wan")
    assert main([str(tmp_path / "Wan")]) == 2
    assert "name the folder to write" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Wan"]


def test_a_config_by_hand(tmp_path):
    folder = wan_folder(tmp_path / "Wan")
    (folder / "config.json").rename(tmp_path / "its.json")
    assert main([str(folder), str(tmp_path / "dit")]) == 2
    assert main([str(folder), str(tmp_path / "dit"), "--config", str(tmp_path / "its.json")]) == 0
