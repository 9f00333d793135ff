"""Each kind of bad input: one CheckpointError that names the file, the tensor and what to do."""

import collections
import contextlib
import json
import os
import pickle
import re
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from checkpoints_convert import CheckpointError, convert, convert_dit, open_dit
from tests.convert.checkpoints import CASE, config_json, save_pt, tensors, wan_folder

STATE, CONFIG = CASE.state, CASE.config
FILE = "diffusion_pytorch_model.safetensors"


def refused(path, *parts, convert_to=None, **options) -> str:
    """The message, which has all parts; nothing was written and no source was touched."""
    before = {p: p.read_bytes() for p in path.parent.rglob("*") if p.is_file()}
    out = path.parent / "converted" if convert_to is None else convert_to
    with pytest.raises(CheckpointError) as error:
        convert(open_dit(path, **options), out)
    message = str(error.value)
    for part in parts:
        assert re.search(part, message), f"{part!r} is not in: {message}"
    assert before == {p: p.read_bytes() for p in path.parent.rglob("*") if p.is_file()}
    assert not os.path.lexists(out) and not list(path.parent.glob(".*partial*"))
    return message


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_safetensors(tmp_path, keep):
    path = wan_folder(tmp_path) / FILE
    path.write_bytes(path.read_bytes()[:keep])
    refused(path, FILE, "truncated", "download it again")


@pytest.mark.parametrize("keep", [0, 4, 1000, -100])
def test_truncated_pt(tmp_path, keep):
    path = save_pt(tmp_path / "model.pt", tensors(STATE))
    path.write_bytes(path.read_bytes()[:keep])
    refused(path, "model.pt", "truncated", "download it again")


def test_another_suffix_and_no_file(tmp_path):
    refused(tmp_path / "model.onnx", "model.onnx", r"give one of these")
    refused(tmp_path / "model.pt", "model.pt", "No such file", "check the path")
    refused(tmp_path / "model.safetensors", "model.safetensors", "no such file", "check the path")


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (("encoder.conv1.weight", "decoder.middle.0.residual.0.gamma"), "the Wan VAE"),
        (("token_embedding.weight", "blocks.0.attn.q.weight"), "the UMT5 text encoder"),
        (("shared.weight", "encoder.block.0.layer.0.layer_norm.weight"), "the UMT5 text encoder"),
        (("visual.conv1.weight",), "the CLIP image encoder"),
        (("blocks.0.ffn.0.lora_A.weight", "blocks.0.ffn.0.lora_B.weight"), "a LoRA .* --lora"),
        (("unet.down.weight", "unet.up.weight"), "no Wan DiT.*unet.down.weight.*another file"),
    ],
)
def test_another_model(tmp_path, names, what):
    path = tmp_path / "other.safetensors"
    save_file({name: np.zeros((2, 2), np.float32) for name in names}, path)
    refused(path, "other.safetensors", what)


@pytest.mark.parametrize(
    "extra", ["img_emb.proj.0.weight", "blocks.0.cross_attn.k_img.weight", None]
)
def test_image_to_video_is_refused_by_name(tmp_path, extra):
    patch = np.zeros((24, 36, 1, 2, 2), np.float32)
    state = STATE | ({extra: np.zeros(3, np.float32)} if extra else {})
    state |= {} if extra else {"patch_embedding.weight": patch}
    refused(wan_folder(tmp_path, state), extra or "36 input channels", "image-to-video",
            "convert a text-to-video model")  # fmt: skip


def test_a_missing_an_extra_and_a_misshapen_tensor(tmp_path):
    state = dict(STATE)
    del state["blocks.1.ffn.2.bias"]
    state["blocks.0.norm9.weight"] = np.zeros(5, np.float32)
    state["head.modulation"] = np.zeros((1, 3, 24), np.float32)
    refused(
        wan_folder(tmp_path, state), str(tmp_path),
        r"missing: blocks/ffn_2/bias in layers \[1\]", r"surplus: blocks\.0\.norm9\.weight \(5,\)",
        r"shape: head\.modulation gives \(1, 3, 24\), the model needs \(1, 2, 24\)",
        "a complete checkpoint",
    )  # fmt: skip


@pytest.mark.parametrize("name", ["patch_embedding.weight", "head.head.weight"])
def test_a_missing_tensor_that_tells_the_sizes(tmp_path, name):
    path = tmp_path / "m.safetensors"
    save_file({key: x for key, x in STATE.items() if key != name}, path)
    refused(path, "m.safetensors", re.escape(name))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_not_a_number(tmp_path, value, dtype):
    state = {name: x.astype(dtype) for name, x in STATE.items()}
    state["blocks.2.ffn.0.weight"][3, 1] = value
    refused(wan_folder(tmp_path, state), FILE, r"blocks\.2\.ffn\.0\.weight has 1 values", "damaged")


def test_too_large_for_the_dtype(tmp_path):
    state = STATE | {"head.head.bias": np.full(12, 7e4, np.float32)}
    opened = open_dit(wan_folder(tmp_path, state))
    with pytest.raises(CheckpointError, match=r"head\.head\.bias has 12.*float16.*bfloat16"):
        convert(opened, tmp_path / "out", dtype=np.float16)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.int64, torch.complex64])
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_weights_that_are_no_plain_floats(tmp_path, dtype, suffix):
    state = tensors(STATE) | {"head.head.bias": torch.ones(12, dtype=dtype)}
    path = tmp_path / f"model.{suffix}"
    (tmp_path / "config.json").write_text(config_json())
    (torch.save if suffix == "pt" else save_torch)(state, path)
    refused(path, path.name, "head.head.bias", "bfloat16 or float32 version")


class Intruder:
    """Unpickled, it would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("place", ["beside the tensors", "alone", "as a raw pickle"])
def test_a_pickle_that_wants_to_run_code(tmp_path, place):
    trace, path = tmp_path / "was-here", tmp_path / "model.pt"
    state = tensors(STATE) | {"extra": Intruder(trace)}
    if place == "as a raw pickle":
        path.write_bytes(pickle.dumps(Intruder(trace)))
    else:
        torch.save(state if place == "beside the tensors" else Intruder(trace), path)
    refused(path, "model.pt", "executed|another format", "take a .safetensors|download")
    assert not trace.exists()
    # The file does what it is made for, where it is trusted.
    with contextlib.suppress(RuntimeError):  # no torch file, but unpickled by then
        torch.load(path, weights_only=False)
    assert trace.exists()


def test_a_pickle_of_other_objects(tmp_path):
    path = save_pt(
        tmp_path / "m.pt", {"generator": tensors(STATE), "args": collections.Counter(a=1)}
    )
    # Counters are on torch's list of harmless types; a regular expression is not.
    assert open_dit(path, config=CONFIG).source.left_out == ("args",)
    save_pt(path, {"generator": tensors(STATE), "args": re.compile("x")})
    refused(path, "m.pt", "executed", "save only the state dict")


def test_a_zip_bomb(tmp_path):
    """A gigabyte of zeros in a megabyte."""
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        with archive.open("model/data.pkl", "w", force_zip64=True) as entry:
            for _ in range(64):
                entry.write(bytes(1 << 20))
    assert path.stat().st_size < 1 << 20
    refused(path, "model.pt", "data.pkl is compressed", "save the checkpoint again")


def test_entries_that_overlap(tmp_path):
    """Stored, but two of them the same bytes."""
    path = save_pt(tmp_path / "model.pt", tensors(STATE))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("model/data/again", b"")
        archive.filelist[-1].header_offset = archive.filelist[2].header_offset
    refused(path, "model.pt", "overlaps other data", "download it again")


def test_a_tensor_of_strides_zero(tmp_path):
    """A petabyte in four bytes."""
    state = {"generator": {"x": torch.zeros(1).expand(10**15)}}
    refused(save_pt(tmp_path / "m.pt", state), "m.pt", "tensor x", "larger than its data")


def test_dicts_without_end(tmp_path):
    endless: dict = {}
    endless["model"] = endless
    refused(save_pt(tmp_path / "m.pt", endless), "m.pt", "no Wan DiT")


def test_an_old_torch_file(tmp_path):
    path = tmp_path / "m.pth"
    torch.save(tensors(STATE), path, _use_new_zipfile_serialization=False)
    refused(path, "m.pth", "another format")


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"num_layers": 2}, r"surplus: blocks\.2\.modulation"),
        ({"num_layers": 4}, r"missing: blocks/modulation in layers \[3\]"),
        ({"dim": 48}, r"shape: head\.modulation gives \(1, 2, 24\), the model needs \(1, 2, 48\)"),
        ({"text_dim": 9}, r"shape: text_embedding\.0\.weight"),
        ({"qk_norm": False}, r"surplus: blocks\.0\.self_attn\.norm_q\.weight"),
        ({"cross_attn_norm": False}, r"surplus: blocks\.0\.norm3\.bias"),
        ({"num_heads": 5}, "heads"),
        ({"num_heads": "many"}, "no supported model"),
        ({"model_type": "i2v"}, "'i2v'"),
        ({"colour": 1}, "colour"),
    ],
)
def test_a_config_that_disagrees(tmp_path, fields, what):
    folder = wan_folder(tmp_path)
    (folder / "config.json").write_text(json.dumps(json.loads(config_json()) | fields))
    refused(folder, str(tmp_path), "config.json", what, "--config")


@pytest.mark.parametrize("content", ["", "[]", "{", "\x00", "[" * 100000])
def test_a_broken_config(tmp_path, content):
    (wan_folder(tmp_path) / "config.json").write_text(content)
    refused(tmp_path, r"config\.json", "download it again")


def test_sizes_that_cannot_be_known(tmp_path):
    path = tmp_path / "m.safetensors"
    save_file(STATE, path)
    refused(path, "m.safetensors", "sizes .* cannot be known", "--config")


def test_a_broken_index(tmp_path):
    index = tmp_path / "a.safetensors.index.json"
    save_file({"x": np.zeros(1, np.float32)}, tmp_path / "shard.safetensors")
    for content, what in [
        ('{"weight_map": {}}', "no weight_map"),
        ('{"weight_map": {"x": "gone.safetensors"}}', r"gone\.safetensors.*no such file"),
        ('{"weight_map": {"x": "../shard.safetensors"}}', "is no file name"),
        ('{"weight_map": {"x": "/etc/passwd"}}', "is no file name"),
        ('{"weight_map": {"x": 3}}', "is no file name"),
        ('{"weight_map": {"y": "shard.safetensors"}}', "differ in x, y"),
    ]:
        index.write_text(content)
        refused(index, what)


def test_names_that_become_one(tmp_path):
    state = tensors(STATE) | {"model.head.head.bias": torch.zeros(12)}
    refused(
        save_pt(tmp_path / "m.pt", state), "m.pt", r"head\.head\.bias", "--which|one model only"
    )


def test_mappings_are_checked_too():
    with pytest.raises(CheckpointError, match="the mapping.*head.head.bias has 12 values"):
        convert_dit(STATE | {"head.head.bias": np.full(12, np.nan, np.float32)}, CONFIG)
