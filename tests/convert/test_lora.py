"""LoRA files: merged weights are W + (alpha / rank) B A, computed here in float64."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from checkpoints_convert import CheckpointError, convert_dit, open_dit
from checkpoints_convert.open_source import open_source
from tests.convert.checkpoints import CASE, save_pt, tensors, wan_folder

STATE, CONFIG = CASE.state, CASE.config
RANK = 4
TOUCHED = [f"blocks.{i}.{name}" for i in range(3) for name in ("self_attn.q", "ffn.0", "ffn.2")]


def halves(seed: int = 0) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A [rank, in] and B [out, rank] of each layer."""
    rng = np.random.default_rng(seed)
    shapes = {name: STATE[f"{name}.weight"].shape for name in TOUCHED}
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    return {name: (draw(RANK, n_in), draw(out, RANK)) for name, (out, n_in) in shapes.items()}


def named(pairs, pattern: str, down: str = "lora_A", up: str = "lora_B"):
    """Under PEFT's names or others."""
    state = {}
    for name, (a, b) in pairs.items():
        state[pattern.format(f"{name}.{down}")] = a
        state[pattern.format(f"{name}.{up}")] = b
    return state


def expected(scale: float, pairs) -> dict[str, np.ndarray]:
    merged = {name: x.astype(np.float64) for name, x in STATE.items()}
    for name, (a, b) in pairs.items():
        merged[f"{name}.weight"] = merged[f"{name}.weight"] + scale * b.astype(
            np.float64
        ) @ a.astype(np.float64)
    return merged


def assert_merged(tmp_path, loras, scale, pairs=None, **options):
    base = wan_folder(tmp_path / "base")
    own = convert_dit(base, CONFIG, loras=loras, **options)
    wanted = convert_dit(expected(scale, pairs or halves()), CONFIG)
    for name in ("self_attn", "ffn_0", "ffn_2", "cross_attn", "modulation"):
        own_leaf, wanted_leaf = (tree["blocks"][name] for tree in (own, wanted))
        if name == "self_attn":
            own_leaf, wanted_leaf = own_leaf["q"], wanted_leaf["q"]
        if isinstance(own_leaf, dict) and "kernel" in own_leaf:
            own_leaf, wanted_leaf = own_leaf["kernel"], wanted_leaf["kernel"]
            np.testing.assert_allclose(own_leaf, wanted_leaf, rtol=1e-6, atol=1e-6)
    return own


def peft_folder(folder, config, pairs=None):
    folder.mkdir()
    state = named(pairs or halves(), "base_model.model.{}.weight")
    save_file(state, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({"lora_alpha": 8, "r": 4}, 2),
        ({"lora_alpha": 4, "r": 4}, 1),
        ({"lora_alpha": 8, "r": 4, "use_rslora": True}, 4),
    ],
)
def test_a_peft_folder(tmp_path, config, scale):
    assert_merged(tmp_path, [peft_folder(tmp_path / "lora", config)], scale)


def test_longlive(tmp_path):
    """{"generator_lora": ...} with PEFT's names around the wrapped model; alpha is the rank."""
    state = named(halves(), "base_model.model.model.{}.default.weight")
    path = save_pt(tmp_path / "lora.pt", {"generator_lora": tensors(state), "step": 3})
    assert_merged(tmp_path, [path], 1)


def test_names_with_down_up_and_alpha(tmp_path):
    pairs = halves()
    state = named(pairs, "diffusion_model.{}.weight", "lora_down", "lora_up")
    state |= {f"diffusion_model.{name}.alpha": np.array(6, np.float32) for name in pairs}
    save_file(state, tmp_path / "style.safetensors")
    assert_merged(tmp_path, [tmp_path / "style.safetensors"], 6 / RANK)


def test_alpha_by_hand_and_unknown(tmp_path):
    save_file(named(halves(), "{}.weight"), tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"a\.safetensors.*--lora-alpha.*rank, 4"):
        convert_dit(wan_folder(tmp_path / "base"), CONFIG, loras=[tmp_path / "a.safetensors"])
    assert_merged(tmp_path, [tmp_path / "a.safetensors"], 0.5, lora_alpha=2.0)


def test_two_of_them(tmp_path):
    folders = [
        peft_folder(tmp_path / f"lora{i}", {"lora_alpha": 4}, halves(seed=i)) for i in range(2)
    ]
    own = convert_dit(wan_folder(tmp_path / "base"), CONFIG, loras=folders)
    wanted = expected(1, halves(0))["blocks.1.ffn.0.weight"]
    a, b = halves(1)["blocks.1.ffn.0"]
    np.testing.assert_allclose(
        own["blocks"]["ffn_0"]["kernel"][1].T, wanted + b @ a, rtol=1e-5, atol=1e-5
    )


def test_a_bfloat16_model_is_rounded_once(tmp_path):
    half = {name: x.astype(jnp.bfloat16) for name, x in STATE.items()}
    folder = wan_folder(tmp_path / "base", half)
    lora = peft_folder(tmp_path / "lora", {"lora_alpha": 8})
    assert open_dit(folder, loras=[lora]).dtype == np.float32
    own = convert_dit(folder, CONFIG, loras=[lora], dtype=jnp.bfloat16)
    a, b = halves()["blocks.2.ffn.2"]
    exact = half["blocks.2.ffn.2.weight"].astype(np.float32) + np.float32(2) * (b @ a)
    np.testing.assert_array_equal(own["blocks"]["ffn_2"]["kernel"][2].T, exact.astype(jnp.bfloat16))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda s: s | {"blocks.9.ffn.0.lora_A.weight": s["blocks.0.ffn.0.lora_A.weight"],
                        "blocks.9.ffn.0.lora_B.weight": s["blocks.0.ffn.0.lora_B.weight"]},
         r"blocks\.9\.ffn\.0\.weight .* not in the model"),
        (lambda s: {k: x for k, x in s.items() if k != "blocks.0.ffn.0.lora_B.weight"},
         r"without a pair such as \['blocks\.0\.ffn\.0\.weight'\]"),
        (lambda s: s | {"blocks.0.ffn.0.diff_b": np.zeros(20, np.float32)}, r"ffn\.0\.diff_b"),
        (lambda s: s | {"blocks.0.ffn.0.lora_B.weight": np.zeros((21, 4), np.float32)},
         r"blocks\.0\.ffn\.0\.weight .*the model has \(20, 24\)"),
        (lambda s: s | {"blocks.0.ffn.0.lora_B.weight": np.zeros((20, 5), np.float32)},
         "two halves"),
        (lambda s: {"blocks.0.ffn.0.weight": np.zeros((20, 24), np.float32)}, "0 pairs"),
    ],
)  # fmt: skip
def test_a_lora_that_does_not_fit(tmp_path, change, what):
    path = tmp_path / "lora.safetensors"
    save_file(change(named(halves(), "{}.weight")), path)
    with pytest.raises(CheckpointError, match=rf"lora\.safetensors[\s\S]*{what}"):
        open_dit(wan_folder(tmp_path / "base"), loras=[path], lora_alpha=4.0)


@pytest.mark.parametrize("field", ["use_dora", "rank_pattern", "alpha_pattern", "fan_in_fan_out"])
def test_what_is_no_plain_lora(tmp_path, field):
    lora = peft_folder(tmp_path / "lora", {"lora_alpha": 8, field: {"q": 3}})
    with pytest.raises(CheckpointError, match=f"{field}.*merge it with PEFT"):
        open_dit(wan_folder(tmp_path / "base"), loras=[lora])


def test_the_files_are_recorded(tmp_path):
    lora = open_source(peft_folder(tmp_path / "lora", {"lora_alpha": 8}))
    names = [file.name for file in lora.files]
    assert names == ["adapter_model.safetensors", "adapter_config.json"]
