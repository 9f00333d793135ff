"""Whole pipelines, in both layouts, to one folder: all of it or nothing."""

import shutil

import jax
import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from safetensors.torch import load_file, save_file
from transformers import UMT5Config as TorchConfig
from transformers import UMT5EncoderModel

from checkpoints_convert.__main__ import main
from checkpoints_convert.rules import apply_rules, lazy_params, source_name
from checkpoints_convert.source import LazyTensor
from checkpoints_convert.umt5 import TRANSFORMERS_UMT5_RULES, UMT5_RULES
from checkpoints_convert.wan_vae import WAN_VAE_RULES
from checkpoints_convert.wan_vae_diffusers import diffusers_vae_rules
from tests import pipelines
from tests.models.test_umt5 import wan_name as wan_umt5_name
from tests.models.wan_vae.cases import wan_name as wan_vae_name
from vidcache_jax.checkpoint import read_info, restore_params
from vidcache_jax.checkpoint.paths import by_path
from vidcache_jax.models import umt5
from vidcache_jax.models.wan_vae import WanVAE, WanVAEConfig
from vidcache_jax.testing import same_bits

PARTS = ["dit", "text_encoder", "tokenizer", "vae"]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """One of each layout; not to be changed."""
    folder = tmp_path_factory.mktemp("sources")
    pipelines.diffusers_folder(folder / pipelines.NAME)
    pipelines.wan_companions(folder / "Wan2.1")
    return folder


@pytest.fixture
def source(sources, tmp_path):
    """A copy of diffusers' layout, to be damaged."""
    return shutil.copytree(sources / pipelines.NAME, tmp_path / pipelines.NAME)


def run(capsys, *arguments) -> tuple[int, str]:
    status = main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return status, " ".join((printed.out + printed.err).split())


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def numpy_state(tensors) -> dict[str, np.ndarray]:
    return {name: tensor.detach().float().numpy() for name, tensor in tensors}


def assert_holds(folder, rules, state, abstract):
    """The folder has the bits that Wan's rules make of the tensors under Wan's names."""
    wanted = apply_rules(rules, state, abstract, read_info(folder).dtype)
    loaded = restore_params(folder, wanted)
    assert jax.tree.all(jax.tree.map(same_bits, loaded, wanted))


def test_diffusers_layout(sources, tmp_path, capsys):
    source, out = sources / pipelines.NAME, tmp_path / "out"
    status, said = run(capsys, source, "--dry-run")
    assert status == 0 and names(tmp_path) == [], said
    for fact in ("names: diffusers", "names: transformers", "chunks of 3", "128 tokens",
                 "tokenizer.json", "every tensor has its place"):  # fmt: skip
        assert fact in said
    status, said = run(capsys, source, out, "--verify")
    assert status == 0 and "185 tensors are bit for bit" in said
    assert names(tmp_path) == ["out"] and names(out) == PARTS
    assert [read_info(out / part).kind for part in PARTS] == PARTS
    vae, encoder = pipelines.vae(), pipelines.text_encoder()
    state = {wan_vae_name(k, 1): x for k, x in numpy_state(vae.state_dict().items()).items()}
    config = WanVAEConfig(dim=4, dim_mult=(1, 2), num_res_blocks=1, temporal_downsample=(True,))
    assert read_info(out / "vae").config["dim_mult"] == [1, 2]
    assert_holds(out / "vae", WAN_VAE_RULES, state, WanVAE(config).abstract_params())
    state = {wan_umt5_name(k): x for k, x in numpy_state(encoder.named_parameters()).items()}
    config = umt5.UMT5Config(**read_info(out / "text_encoder").config)
    assert (config.vocab_size, config.dim_attn, config.num_layers) == (128, 16, 2)
    assert_holds(out / "text_encoder", UMT5_RULES, state, umt5.abstract_params(config))


def test_wan_layout_and_parts_from_elsewhere(sources, tmp_path, capsys):
    """Self-Forcing's file with Wan's other models, named one by one and by their folder."""
    dit, wan = sources / pipelines.NAME / "transformer", sources / "Wan2.1"
    files = ["--vae", wan / "Wan2.1_VAE.pth", "--text-encoder",
             wan / "models_t5_umt5-xxl-enc-bf16.pth", "--tokenizer",
             wan / "google" / "umt5-xxl" / "tokenizer.json"]  # fmt: skip
    status, _ = run(capsys, dit, tmp_path / "one", *files, "--dtype", "bfloat16")
    assert status == 0
    dtypes = {part: read_info(tmp_path / "one" / part).dtype for part in PARTS}
    assert dtypes == {"dit": "bfloat16", "text_encoder": "bfloat16", "vae": "float32",
                      "tokenizer": ""}  # fmt: skip
    assert read_info(tmp_path / "one" / "vae").config["dim"] == 4
    folder = ["--vae", wan, "--text-encoder", wan, "--tokenizer", wan]
    status, said = run(capsys, dit, tmp_path / "one", *folder, "--verify")
    assert status == 0 and "bit for bit" in said
    # Wan's own folder: the DiT lies among the others.
    whole = shutil.copytree(wan, tmp_path / "Self-Forcing")
    shutil.copy(dit / "diffusion_pytorch_model.safetensors", whole)
    shutil.copy(dit / "config.json", whole)
    status, _ = run(capsys, whole, tmp_path / "two", "--verify")
    assert status == 0 and names(tmp_path / "two") == PARTS
    assert [file.name for file in read_info(tmp_path / "two" / "vae").sources] == ["Wan2.1_VAE.pth"]
    status, _ = run(capsys, whole / "diffusion_pytorch_model.safetensors", tmp_path / "dit")
    assert status == 0 and read_info(tmp_path / "dit").kind == "dit"


@pytest.mark.parametrize("part", ["vae", "text_encoder", "tokenizer"])
def test_a_missing_part_is_asked_for(source, tmp_path, capsys, part):
    shutil.rmtree(source / part)
    status, said = run(capsys, source, tmp_path / "out")
    option = f"--{part.replace('_', '-')}"
    assert status == 2 and f"no {part}: say where they are with {option};" in said
    assert names(tmp_path) == [source.name]


def replace(part, other):
    shutil.rmtree(part)
    shutil.copytree(other, part)


def save_encoder(folder, **fields):
    sizes = dict(d_model=12, d_kv=8, d_ff=8, num_heads=2, num_layers=1, vocab_size=128)
    UMT5EncoderModel(TorchConfig(**{**sizes, **fields})).save_pretrained(folder / "text_encoder")


def spoil_last(path, change):
    state = load_file(path)
    name = max(state)
    state[name] = change(state[name])
    save_file(state, path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda it: (it / "tokenizer" / "tokenizer.json").unlink(), "no tokenizer.json in"),
        (lambda it: (it / "tokenizer" / "tokenizer.json").write_text("{"), "is no tokenizer"),
        (lambda it: replace(it / "text_encoder", it / "vae"),
         "is no UMT5 text encoder"),
        (lambda it: replace(it / "vae", it / "transformer"),
         "is no VAE of Wan 2.1"),
        (lambda it: spoil_last(it / "vae" / "diffusion_pytorch_model.safetensors",
                               lambda x: x[:1]), "quant_conv"),
        # Met when much is written already.
        (lambda it: spoil_last(it / "text_encoder" / "model.safetensors", lambda x: x / 0),
         "NaN or infinite"),
        (lambda it: save_encoder(it, d_model=8),
         "differ, 8 and 12"),
        (lambda it: save_encoder(it, vocab_size=20),
         "the text encoder 20"),
    ],
    ids=["no tokenizer", "broken tokenizer", "vae for text", "dit for vae", "shape", "NaN",
         "width", "vocabulary"],
)  # fmt: skip
def test_bad_parts_leave_nothing(source, tmp_path, capsys, spoil, message):
    spoil(source)
    status, said = run(capsys, source, tmp_path / "out")
    assert status == 2 and message in said, said
    assert names(tmp_path) == [source.name]


def test_verify_looks_at_every_part(source, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(capsys, source, out)[0] == 0
    (out / "tokenizer" / "tokenizer.json").write_text("{}")
    status, said = run(capsys, source, out, "--verify")
    assert status == 2 and "tokenizer.json differs from its source" in said
    spoil_last(source / "vae" / "diffusion_pytorch_model.safetensors", lambda x: x + 1)
    status, said = run(capsys, source, out, "--verify")
    assert status == 2 and "vae was converted from other files" in said
    status, said = run(capsys, out, tmp_path / "back", "--export", "wan")
    assert status == 2 and "give its folder dit" in said
    assert run(capsys, out / "dit", tmp_path / "back", "--export", "wan")[0] == 0


def shapes_of(model) -> dict[str, LazyTensor]:
    """Of a module without storage."""
    return {
        name: LazyTensor(tuple(x.shape), np.dtype(np.float32), lambda: np.zeros(0), "meta")
        for name, x in model.named_parameters()
    }


def test_released_companions_of_diffusers_fit_by_name_and_shape():
    """Both ways, at full size, nothing allocated."""
    config = TorchConfig(vocab_size=256384, d_model=4096, d_kv=64, d_ff=10240, num_heads=64,
                         num_layers=24)  # fmt: skip
    with torch.device("meta"):
        vae, encoder = shapes_of(AutoencoderKLWan()), shapes_of(UMT5EncoderModel(config))
    for rules, tensors, abstract in (
        (diffusers_vae_rules(WanVAEConfig()), vae, WanVAE().abstract_params()),
        (TRANSFORMERS_UMT5_RULES, encoder, umt5.abstract_params(umt5.UMT5Config())),
    ):
        leaves = by_path(lazy_params(rules, tensors, abstract, np.float32))
        back = {
            source_name(rules, path, layer if leaf.is_stacked else None)[1]
            for path, leaf in leaves.items()
            for layer in range(len(leaf.parts))
        }
        assert back == tensors.keys()
