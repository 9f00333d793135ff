"""UMT5 against transformers' UMT5EncoderModel, a recorded run of Wan's own, its real shapes."""

import copy
import functools
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import UMT5Config as TorchConfig
from transformers import UMT5EncoderModel
from transformers.models.umt5.modeling_umt5 import UMT5Attention

from checkpoints_convert.rules import apply_rules
from checkpoints_convert.umt5 import UMT5_RULES
from tests.models.cases import QUICK
from vidcache_jax.models import umt5
from vidcache_jax.models.umt5 import UMT5Config, relative_buckets
from vidcache_jax.testing import assert_close, same_bits

GOLDENS = Path(__file__).parents[2].parent / "shared" / "goldens"
# Heads wider together than the model, and texts longer than the farthest bucket.
CONFIG = UMT5Config(vocab_size=50, dim=12, dim_attn=24, dim_ffn=20, num_heads=3, num_layers=3,
                    num_buckets=8, max_distance=16)  # fmt: skip
WAN_NAMES = (
    (r"^shared\.", "token_embedding."),
    (r"^encoder\.final_layer_norm", "norm"),
    (r"^encoder\.block\.(\d+)\.", r"blocks.\1."),
    (r"layer\.0\.SelfAttention\.relative_attention_bias", "pos_embedding.embedding"),
    (r"layer\.0\.SelfAttention", "attn"),
    (r"layer\.0\.layer_norm", "norm1"),
    (r"layer\.1\.layer_norm", "norm2"),
    (r"layer\.1\.DenseReluDense\.wi_0", "ffn.gate.0"),
    (r"layer\.1\.DenseReluDense\.wi_1", "ffn.fc1"),
    (r"layer\.1\.DenseReluDense\.wo", "ffn.fc2"),
)
encode = jax.jit(umt5.encode, static_argnums=1, compiler_options=QUICK)


def torch_config(config: UMT5Config) -> TorchConfig:
    return TorchConfig(
        vocab_size=config.vocab_size, d_model=config.dim, d_kv=config.dim_attn // config.num_heads,
        d_ff=config.dim_ffn, num_heads=config.num_heads, num_layers=config.num_layers,
        relative_attention_num_buckets=config.num_buckets,
        relative_attention_max_distance=config.max_distance, dropout_rate=0.0,
    )  # fmt: skip


def wan_name(name: str) -> str:
    for pattern, target in WAN_NAMES:
        name = re.sub(pattern, target, name)
    return name


@functools.cache
def reference() -> UMT5EncoderModel:
    """transformers' module; activations of order one, attention that is far from uniform."""
    model, rng = UMT5EncoderModel(torch_config(CONFIG)), np.random.default_rng(0)
    for name, weight in model.named_parameters():
        value = rng.normal(size=tuple(weight.shape))
        if "layer_norm" in name:
            value = 1 + 0.3 * value
        elif "relative" not in name and "shared" not in name:
            value = value / np.sqrt(weight.shape[1])
        weight.data = torch.tensor(value, dtype=torch.float32)
    return model.eval().requires_grad_(False)


@functools.cache
def state() -> dict[str, np.ndarray]:
    tensors = dict(reference().named_parameters())
    return {wan_name(name): weight.numpy() for name, weight in tensors.items()}


@functools.cache
def params(dtype=jnp.float32):
    return apply_rules(UMT5_RULES, state(), umt5.abstract_params(CONFIG), dtype)


def batch(seed=0, lengths=(40, 7, 1)):
    rng = np.random.default_rng(seed)
    ids = rng.integers(1, CONFIG.vocab_size, (len(lengths), 40))
    mask = np.arange(40) < np.array(lengths)[:, None]
    return np.where(mask, ids, 0).astype(np.int32), mask


def torch_hidden(model, ids, mask):
    """[B, Tt, dim], rows of padding zero."""
    out = model(torch.tensor(ids), torch.tensor(mask.astype(np.int64))).last_hidden_state
    return out.float().numpy() * mask[..., None]


@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (8, 16), (4, 3), (20, 77)])
def test_buckets_equal_transformers(num_buckets, max_distance):
    config = UMT5Config(num_buckets=num_buckets, max_distance=max_distance)
    attention = UMT5Attention(torch_config(config), has_relative_attention_bias=True)
    position = torch.arange(512)
    expected = attention._relative_position_bucket(position[None, :] - position[:, None])
    np.testing.assert_array_equal(relative_buckets(config, 512), expected.numpy())


def test_buckets_by_hand():
    config = UMT5Config(num_buckets=8, max_distance=4)
    expected = [[0, 5, 6, 7], [1, 0, 5, 6], [2, 1, 0, 5], [3, 2, 1, 0]]
    np.testing.assert_array_equal(relative_buckets(config, 4), expected)


def test_equals_transformers():
    ids, mask = batch()
    expected = torch_hidden(reference(), ids, mask)
    assert np.abs(expected[mask]).mean() > 0.3
    actual = encode(params(), CONFIG, jnp.asarray(ids), jnp.asarray(mask))
    assert_close(actual, expected)
    np.testing.assert_array_equal(np.asarray(actual)[~mask], 0)


def test_bfloat16_is_as_close_as_torch():
    """Distance to the float32 result, of ours and of transformers in bfloat16."""
    ids, mask = batch()
    exact = torch_hidden(reference(), ids, mask)
    half = torch.nn.Module.to(copy.deepcopy(reference()), torch.bfloat16)
    theirs = torch_hidden(half, ids, mask)
    ours = encode(params(jnp.bfloat16), CONFIG, jnp.asarray(ids), jnp.asarray(mask))
    assert ours.dtype == jnp.bfloat16
    distance = lambda x: np.sqrt(np.mean((np.asarray(x, np.float32) - exact) ** 2))
    assert 1e-4 < distance(ours) < 1.5 * distance(theirs)


def test_padding_changes_nothing():
    """Neither its ids nor its length; texts of a batch do not see each other."""
    ids, mask = batch()
    other = np.where(mask, ids, 9)
    run = lambda ids, mask: encode(params(), CONFIG, jnp.asarray(ids), jnp.asarray(mask))
    first, second = run(ids, mask), run(other, mask)
    assert same_bits(first, second)
    alone = run(ids[1:2, :7], mask[1:2, :7])
    assert_close(alone[0], first[1, :7])


def test_a_text_without_tokens_is_zero():
    hidden = encode(params(), CONFIG, jnp.zeros((1, 40), jnp.int32), jnp.zeros((1, 40), bool))
    np.testing.assert_array_equal(hidden, np.zeros((1, 40, 12)))


def test_fresh_params():
    init = jax.jit(umt5.init_params, static_argnums=(0, 2), compiler_options=QUICK)
    fresh = init(CONFIG, jax.random.key(0), jnp.bfloat16)
    describe = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, jnp.dtype(leaf.dtype)), tree)
    assert describe(fresh) == describe(umt5.abstract_params(CONFIG, jnp.bfloat16))
    assert describe(fresh) == describe(params(jnp.bfloat16))
    kernel = np.asarray(fresh["blocks"]["attn"]["q"]["kernel"], np.float32)
    assert not np.allclose(kernel[0], kernel[1])


def test_names_land_where_they_belong():
    blocks, tensors = params()["blocks"], state()
    pairs = {
        "token_embedding.weight": params()["token_embedding"]["embedding"],
        "norm.weight": params()["norm"]["scale"],
    }
    for layer in range(3):
        pairs |= {
            f"blocks.{layer}.attn.k.weight": blocks["attn"]["k"]["kernel"][layer].T,
            f"blocks.{layer}.ffn.gate.0.weight": blocks["ffn"]["gate"]["kernel"][layer].T,
            f"blocks.{layer}.ffn.fc2.weight": blocks["ffn"]["fc2"]["kernel"][layer].T,
            f"blocks.{layer}.norm2.weight": blocks["norm2"]["scale"][layer],
            f"blocks.{layer}.pos_embedding.embedding.weight": blocks["pos_embedding"]["embedding"][
                layer
            ],
        }
    for name, value in pairs.items():
        np.testing.assert_array_equal(value, tensors[name], err_msg=name)


def test_no_rule_is_idle_or_ambiguous():
    hits = dict.fromkeys(range(len(UMT5_RULES)), 0)
    for name in state():
        matching = [i for i, rule in enumerate(UMT5_RULES) if re.fullmatch(rule.pattern, name)]
        assert len(matching) == 1, name
        hits[matching[0]] += 1
    assert all(hits.values())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(num_layers=0), "num_layers=0 must be positive"),
        (dict(num_heads=7), "dim_attn=4096 must split into num_heads=7"),
        (dict(num_buckets=30), "num_buckets=30 must be a multiple of 4"),
        (dict(max_distance=8), "max_distance=8 must exceed a quarter of num_buckets=32"),
    ],
)
def test_configs_that_make_no_sense(fields, message):
    with pytest.raises(ValueError, match=message):
        UMT5Config(**fields)


def test_xxl_abstractly():
    """The whole encoder at its real size, without a weight being allocated."""
    config = UMT5Config()
    abstract = umt5.abstract_params(config, jnp.bfloat16)
    ids, mask = (jax.ShapeDtypeStruct((2, 512), dtype) for dtype in (jnp.int32, jnp.bool_))
    encode_xxl = lambda params, ids, mask: umt5.encode(params, config, ids, mask)
    hidden = jax.eval_shape(encode_xxl, abstract, ids, mask)
    assert hidden.shape == (2, 512, 4096) and hidden.dtype == jnp.bfloat16


needs_goldens = pytest.mark.skipif(
    not GOLDENS.is_dir(), reason=f"the recorded references are not at {GOLDENS}"
)


@needs_goldens
def test_the_real_checkpoint_fits():
    """Every tensor has a place, every place a tensor, all shapes agree; nothing is allocated."""
    manifest = json.loads((GOLDENS / "state_dict_manifests.json").read_text())["umt5-xxl-encoder"]
    abstract = umt5.abstract_params(UMT5Config())
    assert sum(leaf.size for leaf in jax.tree.leaves(abstract)) == manifest["params"]
    # Arrays of stride 0 cost nothing; the one surplus name keeps `apply_rules` from stacking them.
    source = {key: np.broadcast_to(np.float32(0), shape) for key, shape in manifest["tensors"]}
    with pytest.raises(ValueError) as error:
        apply_rules(UMT5_RULES, {**source, "one.too.many": np.zeros(1)}, abstract, jnp.float32)
    assert str(error.value).splitlines()[1:] == ["  surplus: one.too.many (1,)"]
    del source["blocks.23.pos_embedding.embedding.weight"]
    with pytest.raises(ValueError) as error:
        apply_rules(UMT5_RULES, source, abstract, jnp.float32)
    assert str(error.value).splitlines()[1:] == [
        "  missing: blocks/pos_embedding/embedding in layers [23]"
    ]


@needs_goldens
def test_the_recorded_run_of_wan():
    """Rows of padding are recorded as they left the reference's last norm; ours are zero."""
    c = json.loads((GOLDENS / "cases.json").read_text())["umt5"]
    assert c.pop("shared_pos") is False
    config = UMT5Config(vocab_size=c.pop("vocab"), **c)
    tensors = load_file(GOLDENS / "umt5.safetensors")
    weights = {k.removeprefix("weights."): v for k, v in tensors.items() if k.startswith("weights")}
    own = apply_rules(UMT5_RULES, weights, umt5.abstract_params(config), jnp.float32)
    mask = tensors["mask"] > 0
    hidden = encode(own, config, jnp.asarray(tensors["ids"], jnp.int32), jnp.asarray(mask))
    # Measured 5e-6; the recording itself is float32.
    expected = tensors["hidden"] * mask[..., None]
    np.testing.assert_allclose(hidden, expected, rtol=0, atol=2e-5)
