"""The DiT under its diffusers names, compared bottom up with diffusers' own modules."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

from checkpoints_convert import FAMILIES, convert_dit, invert_dit
from checkpoints_convert.wan_diffusers import diffusers_rules
from tests.models.cases import QUICK
from vidcache_jax.cache import FullCache
from vidcache_jax.config import WanConfig
from vidcache_jax.models import wan_dit
from vidcache_jax.models.layers import apply
from vidcache_jax.models.wan_block import TextEmbedding
from vidcache_jax.testing import assert_close, same_bits

CONFIG = WanConfig(text_len=7, in_dim=4, out_dim=4, dim=48, ffn_dim=40, freq_dim=16, text_dim=10,
                   num_heads=2, num_layers=3)  # fmt: skip
BATCH, FRAMES, ROWS, COLUMNS = 2, 3, 4, 6
"""Latents; diffusers attends in both directions, so all frames are one chunk here."""


def torch_model(dtype=torch.float32) -> WanTransformer3DModel:
    torch.manual_seed(0)
    model = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=24, in_channels=4, out_channels=4, text_dim=10,
        freq_dim=16, ffn_dim=40, num_layers=3, rope_max_seq_len=32,
    )  # fmt: skip
    with torch.no_grad():
        for tensor in model.parameters():
            # The norms' ones and the tables too, so that none can be mixed up unseen.
            tensor.add_(0.1 * torch.randn_like(tensor))
    # Its own `to` warns that parts are better left in float32.
    torch.nn.Module.to(model.eval(), dtype)
    return model


@pytest.fixture(scope="module")
def reference() -> WanTransformer3DModel:
    return torch_model()


@pytest.fixture(scope="module")
def params(reference):
    return convert_dit(state_of(reference), CONFIG)


def state_of(model) -> dict[str, np.ndarray]:
    return {
        name: np.asarray(tensor.float().numpy(), "float32")
        for name, tensor in model.state_dict().items()
    }


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


LATENTS = draw(BATCH, CONFIG.in_dim, FRAMES, ROWS, COLUMNS)
TEXT = draw(BATCH, CONFIG.text_len, CONFIG.text_dim, seed=1)
TIME = np.array([937.5, 250.0], np.float32)
channels_last = lambda x: jnp.asarray(np.moveaxis(x, 1, -1))
times = jnp.asarray(np.repeat(TIME[:, None], FRAMES, axis=1))


def flow_of(params, config=CONFIG) -> np.ndarray:
    """[B, C, F, Y, X] of the whole clip as one chunk, nothing before it."""

    def run(params, latents, time, text):
        policy = FullCache(FRAMES)
        spec = wan_dit.cache_spec(
            config, BATCH, (ROWS, COLUMNS), FRAMES, wan_dit.param_dtype(params)
        )
        cache = policy.init_layers(spec, config.num_layers)
        text_kv = wan_dit.encode_text(params, config, text)
        flow, _ = wan_dit.denoise(
            params, config, policy, latents, time, text_kv, cache, jnp.int32(0)
        )
        return flow.astype(jnp.float32)

    run = jax.jit(run, compiler_options=QUICK)
    return np.moveaxis(np.asarray(run(params, channels_last(LATENTS), times, TEXT)), -1, 1)


def test_every_name_has_one_rule(reference):
    rules = diffusers_rules()
    used = set()
    for name in reference.state_dict():
        matching = [i for i, rule in enumerate(rules) if re.fullmatch(rule.pattern, name)]
        assert len(matching) == 1, name
        used.update(matching)
    assert used == set(range(len(rules)))


def test_embeddings(reference, params):
    """Patches, time and text, each before the first block."""

    @functools.partial(jax.jit, compiler_options=QUICK)
    def embed(params, latents, time, text):
        chunk = wan_dit.embed_chunk(params, CONFIG, latents, time)
        return *chunk, apply(TextEmbedding(CONFIG), params["text"], text)

    tokens, e, e0, text = embed(params, channels_last(LATENTS), times, TEXT)
    with torch.no_grad():
        own = reference.patch_embedding(torch.tensor(LATENTS)).flatten(2).transpose(1, 2)
        temb, projected, own_text, _ = reference.condition_embedder(
            torch.tensor(TIME), torch.tensor(TEXT)
        )
    assert_close(tokens, own.numpy())
    assert_close(e[:, 0], temb.numpy())
    assert_close(e0[:, 0].reshape(BATCH, -1), projected.numpy())
    assert_close(text, own_text.numpy())


@pytest.mark.parametrize("num_layers", [1, 3])
def test_the_model_is_diffusers_model(reference, num_layers):
    """First with one block, so that a failure says whether it is in the block or between them."""
    model = torch_model()
    model.blocks = model.blocks[:num_layers]
    config = WanConfig(**{**vars(CONFIG), "num_layers": num_layers})
    params = convert_dit(state_of(model), config)
    with torch.no_grad():
        expected = model(
            torch.tensor(LATENTS), torch.tensor(TIME), torch.tensor(TEXT), return_dict=False
        )[0]
    # Measured 4e-6.
    assert_close(flow_of(params, config), expected.numpy())


def test_bfloat16_is_as_near_to_float32_as_diffusers_own(reference, params):
    """Rounding differs in its places, so that both are compared with float32."""
    half = torch_model(torch.bfloat16)
    own = convert_dit(state_of(half), CONFIG, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(own)} == {jnp.dtype(jnp.bfloat16)}
    exact, flow = flow_of(params), flow_of(own)
    with torch.no_grad():
        inputs = (torch.tensor(LATENTS).bfloat16(), torch.tensor(TIME), torch.tensor(TEXT))
        theirs = half(*inputs[:2], inputs[2].bfloat16(), return_dict=False)[0].float().numpy()
    error, their_error = (np.sqrt(np.mean((x - exact) ** 2)) for x in (flow, theirs))
    # Measured 7.6e-3 and 6.7e-3.
    assert error < 2 * their_error
    assert_close(flow, theirs, jnp.bfloat16)


def test_back_to_diffusers_names(reference, params):
    state = state_of(reference)
    back = invert_dit(params, CONFIG, FAMILIES["diffusers"])
    assert back.keys() == state.keys()
    assert all(same_bits(np.ascontiguousarray(back[name]), state[name]) for name in state)
    reference.load_state_dict({name: torch.tensor(x) for name, x in back.items()}, strict=True)
