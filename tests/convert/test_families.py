"""What a checkpoint is: its family, its sizes, whether it is causal, and the released models."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from checkpoints_convert import FAMILIES, CheckpointError
from checkpoints_convert.families import DIFFUSERS, IMAGE_NAMES, WAN, config_of, recognise
from checkpoints_convert.names import plain_name
from checkpoints_convert.provenance import provenance
from checkpoints_convert.rules import layers_of, lazy_params, source_name
from checkpoints_convert.source import LazyTensor, Source
from vidcache_jax.checkpoint.paths import by_path
from vidcache_jax.config import WanConfig
from vidcache_jax.models.wan_dit import abstract_params

GOLDENS = Path(__file__).parents[2].parent / "shared" / "goldens"
RELEASED = {"wan2.1-t2v-1.3b": WanConfig.wan_1_3b(), "wan2.1-t2v-14b": WanConfig.wan_14b()}


def shapes_only(shapes, dtype=np.float32):
    """Tensors that nobody may read."""

    def read():
        raise AssertionError("only shapes were asked for")

    return {
        name: LazyTensor(tuple(s), np.dtype(dtype), read, "shapes") for name, s in shapes.items()
    }


def names_of(config: WanConfig, family) -> dict[str, tuple[int, ...]]:
    """Every name and shape of a model, from its parameters, by the rules read backwards."""
    rules, shapes = family.rules(config.patch_size), {}
    for path, leaf in by_path(abstract_params(config)).items():
        for layer in layers_of(path, leaf.shape):
            rule, name = source_name(rules, path, layer)
            shape = leaf.shape if layer is None else leaf.shape[1:]
            shapes[name] = rule.inverse(np.broadcast_to(np.int8(0), shape)).shape
    return shapes


@pytest.fixture(scope="module")
def manifests():
    path = GOLDENS / "state_dict_manifests.json"
    if not path.exists():
        pytest.skip(f"{path} is not beside this checkout")
    return {
        name: {key: tuple(shape) for key, shape in manifest["tensors"]}
        for name, manifest in json.loads(path.read_text()).items()
    }


@pytest.mark.parametrize("name", RELEASED)
def test_released_models_both_ways(manifests, name):
    """Every name has a place and every place gives the name back, with its shape."""
    tensors = shapes_only(manifests[name])
    assert recognise(tensors, name) is WAN
    config = config_of(WAN, tensors, None, name)
    assert config == RELEASED[name]
    params = lazy_params(WAN.rules(config.patch_size), tensors, abstract_params(config), "bfloat16")
    named = {part.name for leaf in by_path(params).values() for part in leaf.parts}
    assert named == manifests[name].keys()
    assert names_of(config, WAN) == manifests[name]


def test_the_released_image_model_is_known_tensor_by_tensor(manifests):
    """And refused: nothing of it is left to chance."""
    shapes = manifests["wan2.1-i2v-14b"]
    text, image = manifests["wan2.1-t2v-14b"].keys(), shapes.keys()
    assert text < image
    extra = [name for name in shapes if any(re.fullmatch(p, name) for p in IMAGE_NAMES)]
    assert set(extra) == image - text
    with pytest.raises(CheckpointError, match="image-to-video"):
        recognise(shapes_only(shapes), "i2v")


@pytest.mark.parametrize(
    ("name", "what"), [("wan2.1-vae", "the Wan VAE"), ("umt5-xxl-encoder", "the UMT5 text encoder")]
)
def test_the_other_released_models_are_told_apart(manifests, name, what):
    with pytest.raises(CheckpointError, match=f"{name} is {what}"):
        recognise(shapes_only(manifests[name]), name)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "fields",
    [{}, {"qk_norm": False}, {"cross_attn_norm": False}, {"patch_size": (1, 1, 4)},
     {"num_layers": 11}],
)  # fmt: skip
def test_sizes_from_the_tensors_alone(family, fields):
    """At a width that is of no released model; heads are 128 wide, as all of Wan's."""
    config = WanConfig(dim=256, ffn_dim=40, num_heads=2, freq_dim=16, text_dim=24,
                       **{"num_layers": 2, **fields})  # fmt: skip
    tensors = shapes_only(names_of(config, FAMILIES[family]))
    assert recognise(tensors, "it") is FAMILIES[family]
    assert config_of(FAMILIES[family], tensors, None, "it") == config


def test_a_released_width_means_the_released_model():
    """So that a checkpoint without its last layers is incomplete, not another model."""
    shapes = names_of(WanConfig.wan_1_3b(), WAN)
    shapes = {name: s for name, s in shapes.items() if not name.startswith("blocks.29.")}
    assert config_of(WAN, shapes_only(shapes), None, "it").num_layers == 30


def test_config_of_diffusers():
    fields = {
        "_class_name": "WanTransformer3DModel", "added_kv_proj_dim": None, "image_dim": None,
        "attention_head_dim": 128, "num_attention_heads": 12, "cross_attn_norm": True, "eps": 1e-6,
        "ffn_dim": 8960, "freq_dim": 256, "in_channels": 16, "out_channels": 16, "num_layers": 30,
        "patch_size": [1, 2, 2], "qk_norm": "rms_norm_across_heads", "rope_max_seq_len": 1024,
        "text_dim": 4096,
    }  # fmt: skip
    assert config_of(DIFFUSERS, {}, fields, "it") == WanConfig.wan_1_3b()
    with pytest.raises(CheckpointError, match="image-to-video"):
        config_of(DIFFUSERS, {}, fields | {"added_kv_proj_dim": 5120}, "it")


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("blocks.0.ffn.0.weight", "blocks.0.ffn.0.weight"),
        ("blocks.0.ffn.net.0.proj.weight", "blocks.0.ffn.net.0.proj.weight"),
        ("model.blocks.0.ffn.net.2.bias", "blocks.0.ffn.net.2.bias"),
        ("model.diffusion_model.head.modulation", "head.modulation"),
        ("module._orig_mod.net._fsdp_wrapped_module.head.head.bias", "head.head.bias"),
        ("transformer.blocks.1.attn1.to_out.0.bias", "blocks.1.attn1.to_out.0.bias"),
        ("model", "model"),
    ],
)
def test_plain_names(name, plain):
    assert plain_name(name) == plain == plain_name(plain)


@pytest.mark.parametrize(
    ("path", "picked", "kind", "is_causal", "chunk", "steps"),
    [
        ("checkpoints/self_forcing_dmd.pt", "generator_ema", None, True, 3, (1000, 750, 500, 250)),
        ("SFWan2.1-T2V-1.3B-Diffusers/transformer", None, "WanTransformer3DModel", True, 3,
         (1000, 750, 500, 250)),
        ("RollingForcing/rolling_forcing.pt", "generator_ema", None, True, 3,
         (1000, 800, 600, 400, 200)),
        ("causal-forcing/framewise.pt", "generator", None, True, 1, None),
        ("causvid/model.pt", "generator", None, True, None, None),
        ("checkpoints/ode_init.pt", "generator", None, True, 3, None),
        ("LongLive-1.3B/longlive_base.pt", "generator", None, True, 3, (1000, 750, 500, 250)),
        ("LongLive-2.0-5B/model_bf16.pt", None, None, True, None, None),
        ("somewhere/step_600.pt", "generator_ema", None, True, None, None),
        ("Wan2.1-T2V-1.3B", None, "WanModel", False, None, None),
        ("mine/model.safetensors", None, "CausalWanModel", True, None, None),
        ("mine/model.safetensors", None, None, None, None, None),
    ],
)  # fmt: skip
def test_what_can_be_known(path, picked, kind, is_causal, chunk, steps):
    known = provenance(Source(Path(path), {}, config={"_class_name": kind}, picked=picked))
    assert known.is_causal is is_causal
    assert (known.frames_per_chunk, known.denoise_timesteps) == (chunk, steps)
    assert known.evidence in known.describe()
