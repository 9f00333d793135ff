"""The VAE under its original Wan names."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from checkpoints_convert.rules import apply_rules
from checkpoints_convert.wan_vae import WAN_VAE_RULES
from tests.convert.tables import assert_each_rule_serves
from tests.models.wan_vae.cases import WAN_LIKE
from vidcache_jax.models.wan_vae import WanVAE

MANIFESTS = Path(__file__).parents[2].parent / "shared" / "goldens" / "state_dict_manifests.json"


def test_names_land_where_they_belong():
    params, state = WAN_LIKE.params(), WAN_LIKE.state
    encoder, decoder = params["encoder"], params["decoder"]
    conv3d = lambda kernel: np.transpose(kernel, (4, 3, 0, 1, 2))
    conv2d = lambda kernel: np.transpose(kernel, (3, 2, 0, 1))
    pairs = {
        "conv1.weight": np.asarray(params["conv1"]["kernel"]).T[:, :, None, None, None],
        "conv2.bias": params["conv2"]["bias"],
        "encoder.conv1.weight": conv3d(encoder["conv1"]["kernel"]),
        "encoder.downsamples.0.residual.0.gamma": np.reshape(
            encoder["downsamples_0"]["first"]["norm"]["scale"], (-1, 1, 1, 1)
        ),
        "encoder.downsamples.4.residual.6.weight": conv3d(
            encoder["downsamples_4"]["second"]["conv"]["kernel"]
        ),
        "encoder.downsamples.5.resample.1.weight": conv2d(
            encoder["downsamples_5"]["resample"]["kernel"]
        ),
        "encoder.head.2.bias": encoder["head"]["conv"]["bias"],
        "decoder.middle.1.to_qkv.weight": np.asarray(
            decoder["middle_1"]["to_qkv"]["kernel"]
        ).T[:, :, None, None],
        "decoder.upsamples.7.time_conv.weight": conv3d(
            decoder["upsamples_7"]["time_conv"]["kernel"]
        ),
        "decoder.upsamples.11.resample.1.bias": decoder["upsamples_11"]["resample"]["bias"],
        "decoder.upsamples.14.residual.3.gamma": np.reshape(
            decoder["upsamples_14"]["second"]["norm"]["scale"], (-1, 1, 1, 1)
        ),
    }  # fmt: skip
    for name, value in pairs.items():
        np.testing.assert_array_equal(value, state[name], err_msg=name)


def test_no_rule_is_idle_or_ambiguous():
    assert_each_rule_serves(WAN_VAE_RULES, WAN_LIKE.state)


def test_the_real_checkpoint_fits():
    """Every tensor has a place, every place a tensor, all shapes agree; nothing is allocated."""
    if not MANIFESTS.exists():
        pytest.skip(f"{MANIFESTS} is not beside this checkout")
    manifest = json.loads(MANIFESTS.read_text())["wan2.1-vae"]
    abstract = WanVAE().abstract_params()
    assert sum(leaf.size for leaf in jax.tree.leaves(abstract)) == manifest["params"]
    assert len(jax.tree.leaves(abstract)) == len(manifest["tensors"])
    # Arrays of stride 0 cost nothing; the one surplus name keeps `apply_rules` from filling them.
    source = {key: np.broadcast_to(np.float32(0), shape) for key, shape in manifest["tensors"]}
    with pytest.raises(ValueError) as error:
        apply_rules(WAN_VAE_RULES, {**source, "one.too.many": np.zeros(1)}, abstract, jnp.float32)
    assert str(error.value).splitlines()[1:] == ["  surplus: one.too.many (1,)"]
    del source["decoder.middle.1.proj.bias"]
    source["encoder.conv1.weight"] = source["decoder.conv1.weight"]
    with pytest.raises(ValueError) as error:
        apply_rules(WAN_VAE_RULES, source, abstract, jnp.float32)
    assert str(error.value).splitlines()[1:] == [
        "  shape: encoder.conv1.weight gives (3, 3, 3, 16, 384), the model needs (3, 3, 3, 3, 96)",
        "  missing: decoder/middle_1/proj/bias",
        "  missing: encoder/conv1/kernel",
    ]
