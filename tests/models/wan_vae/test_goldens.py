"""The recorded run of Wan's own VAE, reproduced in chunks."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from checkpoints_convert.rules import apply_rules
from checkpoints_convert.wan_vae import WAN_VAE_RULES
from tests.models.wan_vae.cases import channels_last, decode, encode
from vidcache_jax.models.wan_vae import WanVAE, WanVAEConfig

GOLDENS = Path(__file__).parents[3].parent / "shared" / "goldens"
pytestmark = pytest.mark.skipif(
    not GOLDENS.is_dir(), reason=f"the recorded references are not at {GOLDENS}"
)


@pytest.fixture(scope="module")
def golden():
    """(codec, weights under Wan's names, recorded arrays)."""
    case = json.loads((GOLDENS / "cases.json").read_text())["vae"]
    tensors = load_file(GOLDENS / "vae.safetensors")
    weights = {k.removeprefix("weights."): v for k, v in tensors.items() if k.startswith("weights")}
    # Tuples by hand: annotations are checked in tests, and JSON has lists.
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in case.items()}
    for name in ("mean", "std"):
        fields[f"latent_{name}"] = tuple(map(float, tensors[f"latents_{name}"]))
    return WanVAE(WanVAEConfig(**fields)), weights, tensors


def close(actual, expected):
    """Measured 4e-6; the recording itself is float32."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5)


def test_encode(golden):
    vae, weights, tensors = golden
    params = apply_rules(WAN_VAE_RULES, weights, vae.abstract_params(), jnp.float32)
    frames = channels_last(tensors["pixels_in"])
    first, state = encode(vae, params, jnp.asarray(frames[:, :9]), None)
    second, _ = encode(vae, params, jnp.asarray(frames[:, 9:]), state)
    close(np.concatenate([first, second], axis=1), channels_last(tensors["encoded"]))


def test_decode(golden):
    """The recording is not clipped: the last layer's weights are quartered so that nothing is."""
    vae, weights, tensors = golden
    head = {name: weights[name] / 4 for name in weights if name.startswith("decoder.head.2.")}
    params = apply_rules(WAN_VAE_RULES, weights | head, vae.abstract_params(), jnp.float32)
    latents, expected = (channels_last(tensors[name]) for name in ("latents", "pixels"))
    assert 1 < np.abs(expected).max() < 4
    first, state = decode(vae, params, jnp.asarray(latents[:, :2]), None)
    second, _ = decode(vae, params, jnp.asarray(latents[:, 2:]), state)
    close(np.concatenate([first, second], axis=1), expected / 4)
