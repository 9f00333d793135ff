"""Parameters of the DiT: fresh, abstract, converted, and the shapes of the released models."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from checkpoints_convert import convert_dit
from checkpoints_convert.rules import apply_rules
from checkpoints_convert.wan import WAN_RULES
from tests.models.cases import QUICK, case
from tests.models.test_wan_dit import CASES
from vidcache_jax.cache import FullCache
from vidcache_jax.config import WanConfig
from vidcache_jax.models import wan_dit
from vidcache_jax.testing import same_bits

GOLDENS = Path(__file__).parents[2].parent / "shared" / "goldens"
init_params = jax.jit(wan_dit.init_params, static_argnums=(0, 2), compiler_options=QUICK)


def describe(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, jnp.dtype(leaf.dtype)), tree)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_abstract_and_converted_params_agree(name, dtype):
    it = CASES[name]
    abstract = wan_dit.abstract_params(it.config, dtype)
    assert describe(convert_dit(it.state, it.config, dtype=dtype)) == describe(abstract)
    assert wan_dit.param_dtype(abstract) == dtype
    assert sum(leaf.size for leaf in jax.tree.leaves(abstract)) == sum(
        x.size for x in it.state.values()
    )


def test_fresh_params():
    """Zero flow; layers and keys differ; equal keys give equal bits."""
    it = case()
    params, other, same = (
        init_params(it.config, jax.random.key(seed), jnp.float32) for seed in (0, 1, 0)
    )
    assert describe(params) == describe(wan_dit.abstract_params(it.config))
    assert all(map(same_bits, jax.tree.leaves(params), jax.tree.leaves(same)))
    kernel, other_kernel = (p["blocks"]["self_attn"]["q"]["kernel"] for p in (params, other))
    assert not np.allclose(kernel[0], kernel[1])
    assert not np.allclose(other_kernel, kernel)
    policy = FullCache(2)
    spec = wan_dit.cache_spec(it.config, 1, it.latent_size, 2, jnp.float32)
    noisy, time = jnp.asarray(it.latents(0, 1, 2)), jnp.full((1, 2), 500.0)
    denoise = jax.jit(wan_dit.denoise, static_argnums=(1, 2), compiler_options=QUICK)
    cache = policy.init_layers(spec, it.config.num_layers)
    flow, _ = denoise(params, it.config, policy, noisy, time, it.text_kv, cache, jnp.int32(0))
    np.testing.assert_array_equal(flow, np.zeros(flow.shape))


@pytest.fixture(scope="module")
def manifests():
    path = GOLDENS / "state_dict_manifests.json"
    if not path.exists():
        pytest.skip(f"{path} is not beside this checkout")
    return json.loads(path.read_text())


@pytest.mark.parametrize(
    ("name", "config"),
    [("wan2.1-t2v-1.3b", WanConfig.wan_1_3b()), ("wan2.1-t2v-14b", WanConfig.wan_14b())],
)
def test_real_checkpoints_fit(manifests, name, config):
    """Every tensor of the real model has a place, every place a tensor, all shapes agree."""
    manifest = manifests[name]
    assert WanConfig.from_dict(manifest["config"]) == config
    abstract = wan_dit.abstract_params(config)
    assert sum(leaf.size for leaf in jax.tree.leaves(abstract)) == manifest["params"]
    # Arrays of stride 0 cost nothing; the one surplus name keeps `apply_rules` from stacking them.
    source = {key: np.broadcast_to(np.float32(0), shape) for key, shape in manifest["tensors"]}
    with pytest.raises(ValueError) as error:
        apply_rules(WAN_RULES, {**source, "one.too.many": np.zeros(1)}, abstract, jnp.float32)
    assert str(error.value).splitlines()[1:] == ["  surplus: one.too.many (1,)"]


def test_manifest_check_can_fail(manifests):
    """The image-to-video model has tensors and shapes that the text-to-video model lacks."""
    source = {
        k: np.broadcast_to(np.float32(0), s) for k, s in manifests["wan2.1-i2v-14b"]["tensors"]
    }
    abstract = wan_dit.abstract_params(WanConfig.wan_14b())
    with pytest.raises(ValueError) as error:
        apply_rules(WAN_RULES, source, abstract, jnp.float32)
    problems = str(error.value).splitlines()[1:]
    assert any("surplus: img_emb.proj.1.weight" in line for line in problems)
    assert any("surplus: blocks.39.cross_attn.k_img.weight" in line for line in problems)
    assert any("shape: patch_embedding.weight" in line for line in problems)
