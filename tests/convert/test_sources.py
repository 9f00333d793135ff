"""Every form a checkpoint comes in gives the same tensors, exactly, and reads none too early."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from checkpoints_convert import CheckpointError, convert_dit, open_dit
from checkpoints_convert.open_source import open_source
from tests.convert.checkpoints import (
    CASE,
    config_json,
    save_pt,
    sharded_folder,
    tensors,
    wan_folder,
)
from vidcache_jax.testing import same_bits

STATE, CONFIG = CASE.state, CASE.config


def assert_same_params(path, **options):
    params = convert_dit(path, CONFIG, **options)
    assert jax.tree.all(jax.tree.map(same_bits, params, CASE.params))


def wrapped(state, outer="", inner=""):
    """Names as FSDP and torch.compile leave them: ``inner`` at some depths, ``outer`` before."""
    return {
        outer + name.replace("blocks.1.", f"blocks.1.{inner}").replace(".ffn.", f".{inner}ffn."): x
        for name, x in state.items()
    }


@pytest.mark.parametrize("form", [wan_folder, sharded_folder])
def test_folders(tmp_path, form):
    assert_same_params(form(tmp_path / "Wan"))


def test_an_index_by_name(tmp_path):
    folder = sharded_folder(tmp_path)
    assert_same_params(folder / "diffusion_pytorch_model.safetensors.index.json")


def test_a_pipeline_folder(tmp_path):
    wan_folder(tmp_path / "transformer")
    (tmp_path / "model_index.json").write_text("{}")
    (tmp_path / "vae").mkdir()
    assert_same_params(tmp_path)


def test_a_wan_folder_with_its_other_models(tmp_path):
    wan_folder(tmp_path)
    save_pt(tmp_path / "Wan2.1_VAE.pth", {"conv1.weight": torch.zeros(1)})
    assert_same_params(tmp_path)


def test_several_files_are_named(tmp_path):
    for name in ("first.safetensors", "second.safetensors"):
        save_file(STATE, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"2 files of weights.*first.*second"):
        open_source(tmp_path)


@pytest.mark.parametrize(
    ("outer", "inner"),
    [
        ("", ""),
        ("model.", ""),
        ("net.", ""),
        ("model.diffusion_model.", ""),
        ("generator.model.", ""),
        ("module.model.", "module."),
        ("model.", "_fsdp_wrapped_module."),
        ("_fsdp_wrapped_module.model._fsdp_wrapped_module.", "_fsdp_wrapped_module."),
        ("_orig_mod.model.", "_orig_mod._fsdp_wrapped_module."),
    ],
)
@pytest.mark.parametrize("key", ["generator_ema", "generator", "model", None])
def test_self_forcing_names(tmp_path, key, outer, inner):
    state = tensors(wrapped(STATE, outer, inner))
    path = save_pt(tmp_path / "model.pt", state if key is None else {key: state})
    assert_same_params(path)
    assert open_source(path).picked == key


def test_the_average_is_preferred_and_the_rest_is_told(tmp_path):
    raw = {name: x + 1 for name, x in STATE.items()}
    content = {
        "critic": tensors(raw), "generator": tensors(raw, "model."), "step": 600,
        "generator_ema": tensors(STATE, "model."),
    }  # fmt: skip
    path = save_pt(tmp_path / "self_forcing_dmd.pt", content)
    assert_same_params(path)
    source = open_source(path)
    assert (source.picked, source.left_out) == ("generator_ema", ("critic", "generator", "step"))
    other = convert_dit(path, CONFIG, which="generator")
    np.testing.assert_array_equal(other["head"]["modulation"], STATE["head.modulation"] + 1)


def test_a_dict_in_a_dict(tmp_path):
    path = save_pt(tmp_path / "model.pth", {"model": {"state_dict": tensors(STATE)}, "epoch": 3})
    assert_same_params(path)
    assert open_source(path).picked == "model/state_dict"


def test_an_unknown_dict_is_asked_for(tmp_path):
    path = save_pt(tmp_path / "a.pt", {"student": tensors(STATE), "teacher": tensors(STATE)})
    with pytest.raises(CheckpointError, match=r"\['student', 'teacher'\], choose one with --which"):
        open_source(path)
    assert_same_params(path, which="student")


def test_which_needs_a_file_of_several(tmp_path):
    with pytest.raises(CheckpointError, match="omit --which"):
        open_source(wan_folder(tmp_path), which="generator")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_bfloat16_is_exact(tmp_path, suffix):
    """Every one of the finite bfloat16 numbers, in one bias."""
    bits = np.arange(2**16, dtype=np.uint16)
    # The exponent of infinity and NaN is all ones.
    numbers = bits[bits & 0x7F80 != 0x7F80].view(jnp.bfloat16)
    path = tmp_path / f"numbers{suffix}"
    if suffix == ".pt":
        save_pt(path, {"x": torch.tensor(numbers.view(np.int16)).view(torch.bfloat16)})
    else:
        save_file({"x": numbers}, path)
    (tensor,) = open_source(path).tensors.values()
    assert tensor.dtype == jnp.bfloat16 and same_bits(tensor.read(), numbers)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_torch_tensors_as_they_lie(tmp_path, dtype):
    """Transposed, sliced and shared storages."""
    base = torch.arange(24, dtype=dtype).reshape(4, 6)
    views = {"whole": base, "turned": base.T, "part": base[1:3, ::2], "again": base}
    path = save_pt(tmp_path / "views.pt", views)
    for name, tensor in open_source(path).tensors.items():
        assert tensor.shape == tuple(views[name].shape)
        np.testing.assert_array_equal(
            tensor.read().astype(np.float64), views[name].double().numpy(), err_msg=name
        )


def test_a_mapping_is_replaced_when_much_was_read(tmp_path, monkeypatch):
    """And the new one gives the same tensors."""
    monkeypatch.setattr("checkpoints_convert.torch_source._MOST_PAGES", 100)
    assert_same_params(save_pt(tmp_path / "model.pt", {"generator": tensors(STATE, "model.")}))


def test_nothing_is_read_before_it_is_needed(tmp_path):
    """The file's data may be gone, as long as only names and shapes are asked for."""
    path = wan_folder(tmp_path) / "diffusion_pytorch_model.safetensors"
    opened = open_dit(tmp_path)
    leaf = opened.params(jnp.float32)["head"]["head"]["kernel"]
    path.write_bytes(b"")
    assert leaf.shape == CASE.params["head"]["head"]["kernel"].shape
    with pytest.raises(CheckpointError, match=r"diffusion_pytorch_model.*head\.head\.weight"):
        leaf.materialise()


def test_config_of_another_name(tmp_path):
    """A .pt file among other files: their config.json is not taken for the model's."""
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 7}))
    assert open_source(save_pt(tmp_path / "m.pt", tensors(STATE))).config is None
    (tmp_path / "config.json").write_text(config_json())
    assert open_dit(tmp_path / "m.pt").config == CONFIG
