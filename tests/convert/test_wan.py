"""The DiT under its original Wan names."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from checkpoints_convert import convert_dit
from checkpoints_convert.wan import WAN_RULES, patch_kernel
from tests.convert.tables import assert_each_rule_serves
from tests.models.cases import case
from vidcache_jax.checkpoint import CheckpointError
from vidcache_jax.models.wan_dit import abstract_params
from vidcache_jax.testing import same_bits

CASE = case(num_layers=12, num_heads=1, dim=6)


def test_patch_kernel():
    """Conv3d [out, c, 1, p, q] -> rows, columns, channels of a patch, as it is laid out."""
    conv = np.random.default_rng(0).normal(size=(5, 3, 1, 2, 4))
    kernel = patch_kernel()(conv)
    assert kernel.shape == (2 * 4 * 3, 5)
    for p, q, c, out in np.ndindex(2, 4, 3, 5):
        assert kernel[(p * 4 + q) * 3 + c, out] == conv[out, c, 0, p, q]


def test_wan_names_land_where_they_belong():
    params, state = convert_dit(CASE.state, CASE.config), CASE.state
    pairs = {
        "patch_embedding.bias": params["patch_embedding"]["proj"]["bias"],
        "text_embedding.2.weight": params["text"]["text_embedding_2"]["kernel"].T,
        "time_embedding.0.weight": params["time"]["time_embedding_0"]["kernel"].T,
        "time_projection.1.bias": params["time"]["time_projection_1"]["bias"],
        "head.head.weight": params["head"]["head"]["kernel"].T,
        "head.modulation": params["head"]["modulation"],
    }
    blocks = params["blocks"]
    own, text = blocks["self_attn"], blocks["cross_attn"]
    for layer in range(12):
        pairs |= {
            f"blocks.{layer}.modulation": blocks["modulation"][layer],
            f"blocks.{layer}.self_attn.o.weight": own["o"]["kernel"][layer].T,
            f"blocks.{layer}.self_attn.norm_q.weight": own["norm_q"]["scale"][layer],
            f"blocks.{layer}.cross_attn.norm_k.weight": text["norm_k"]["scale"][layer],
            f"blocks.{layer}.cross_attn.v.bias": text["v"]["bias"][layer],
            f"blocks.{layer}.norm3.bias": blocks["norm3"]["bias"][layer],
            f"blocks.{layer}.ffn.2.weight": blocks["ffn_2"]["kernel"][layer].T,
        }  # fmt: skip
    for name, value in pairs.items():
        np.testing.assert_array_equal(value, state[name], err_msg=name)


def test_a_file_is_read_like_a_mapping(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(CASE.state, path)
    expected = jax.tree.leaves(convert_dit(CASE.state, CASE.config))
    for way in (path, str(path)):
        assert all(map(same_bits, jax.tree.leaves(convert_dit(way, CASE.config)), expected))


def test_a_bfloat16_file(tmp_path):
    path = tmp_path / "model.safetensors"
    half = {name: x.astype(jnp.bfloat16) for name, x in CASE.state.items()}
    save_file(half, path)
    params = convert_dit(path, CASE.config)
    expected = convert_dit({name: x.astype(np.float32) for name, x in half.items()}, CASE.config)
    assert all(map(same_bits, jax.tree.leaves(params), jax.tree.leaves(expected)))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="nothing.safetensors"):
        convert_dit(tmp_path / "nothing.safetensors", CASE.config)


def test_another_model_is_refused_with_all_its_differences():
    other = case(num_layers=11, num_heads=1, dim=6, qk_norm=False, text_dim=9)
    with pytest.raises(ValueError) as error:
        convert_dit(CASE.state, other.config)
    problems = str(error.value).splitlines()[1:]
    surplus = [line.split()[1] for line in problems if line.startswith("  surplus")]
    layer_11 = {name for name in CASE.state if name.startswith("blocks.11.")}
    norms = {name for name in CASE.state if ".norm_" in name}
    assert set(surplus) == layer_11 | norms and len(surplus) == len(set(surplus))
    shapes = [line for line in problems if line.startswith("  shape")]
    assert shapes == ["  shape: text_embedding.0.weight gives (7, 6), the model needs (9, 6)"]
    with pytest.raises(ValueError) as error:
        convert_dit(other.state, CASE.config)
    assert "missing: blocks/modulation in layers [11]" in str(error.value)
    assert "missing: blocks/self_attn/norm_q/scale" in str(error.value)


def test_no_rule_of_wan_is_idle_or_ambiguous():
    assert_each_rule_serves(WAN_RULES, CASE.state)
    assert len(jax.tree.leaves(abstract_params(CASE.config))) == len(
        {re.sub(r"blocks\.\d+\.", "blocks.", name) for name in CASE.state}
    )
