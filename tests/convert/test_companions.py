"""`convert_vae` and `convert_umt5` from files, and their rules backwards."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from checkpoints_convert import CheckpointError, convert_umt5, convert_vae
from checkpoints_convert.rules import source_name
from checkpoints_convert.wan_vae import WAN_VAE_RULES
from tests.models.wan_vae.cases import WAN_LIKE
from vidcache_jax.checkpoint.paths import by_path
from vidcache_jax.models.umt5 import UMT5Config


def test_a_pth_file_gives_the_parameters_that_its_tensors_give(tmp_path):
    state = {name: torch.from_numpy(np.array(value)) for name, value in WAN_LIKE.state.items()}
    torch.save(state, tmp_path / "Wan2.1_VAE.pth")
    params = convert_vae(tmp_path / "Wan2.1_VAE.pth", WAN_LIKE.config)
    for (path, own), other in zip(
        jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(WAN_LIKE.params()), strict=True
    ):
        np.testing.assert_array_equal(own, other, err_msg=jax.tree_util.keystr(path))
    half = convert_vae(state_arrays(), WAN_LIKE.config, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {jnp.dtype(jnp.bfloat16)}


def state_arrays():
    return {name: np.asarray(value) for name, value in WAN_LIKE.state.items()}


def test_the_rules_lead_back_to_every_tensor():
    back = {}
    for path, value in by_path(WAN_LIKE.params()).items():
        rule, name = source_name(WAN_VAE_RULES, path, None)
        back[name] = rule.inverse(np.asarray(value))
    assert back.keys() == WAN_LIKE.state.keys()
    for name, value in state_arrays().items():
        np.testing.assert_array_equal(back[name], value, err_msg=name)


def test_another_model_is_refused():
    small = UMT5Config(vocab_size=20, dim=8, dim_attn=8, dim_ffn=16, num_heads=2, num_layers=1)
    with pytest.raises(CheckpointError, match="surplus: .*conv1.weight"):
        convert_umt5(state_arrays(), small)
