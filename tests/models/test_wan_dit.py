"""The causal DiT against an independent float64 implementation, chunk by chunk."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from checkpoints_convert import convert_dit
from tests.models.cases import QUICK, case
from tests.models.wan_oracle import WanOracle
from vidcache_jax.cache import FullCache, SlidingWindow
from vidcache_jax.models import wan_dit
from vidcache_jax.testing import assert_close, same_bits

GOLDENS = Path(__file__).parents[2].parent / "shared" / "goldens"
CASES = {
    "plain": case(),
    "one-layer-one-head": case(num_layers=1, num_heads=1, dim=6, batch=2, patch_size=(1, 1, 1),
                               latent_size=(3, 5), in_dim=4, out_dim=4),
    "three-layers-four-heads": case(num_layers=3, num_heads=4, dim=32, patch_size=(1, 1, 3),
                                    latent_size=(3, 6), in_dim=5, out_dim=5),
    "no-norms": case(qk_norm=False, cross_attn_norm=False, latent_size=(6, 2), batch=2, eps=1e-2),
    "smallest-heads": case(num_heads=3, dim=6, text_len=1, freq_dim=2, ffn_dim=3, in_dim=16,
                           out_dim=16),
}  # fmt: skip
denoise = jax.jit(wan_dit.denoise, static_argnums=(1, 2), compiler_options=QUICK)
commit = jax.jit(wan_dit.commit, static_argnums=(1, 2), compiler_options=QUICK)
init_params = jax.jit(wan_dit.init_params, static_argnums=(0, 2), compiler_options=QUICK)


def empty_cache(it, policy, frames_per_chunk=2, dtype=jnp.float32):
    spec = wan_dit.cache_spec(it.config, it.batch, it.latent_size, frames_per_chunk, dtype)
    return policy.init_layers(spec, it.config.num_layers)


def times(it, seed, num_frames, highest=1000.0):
    """A different timestep for every frame of every video."""
    return np.random.default_rng(seed).uniform(0, highest, (it.batch, num_frames)).astype("f4")


@pytest.mark.parametrize("name", CASES)
def test_equals_the_oracle_over_three_chunks(name):
    """Denoise and commit, each frame at its own time; every layer's cache is compared too."""
    it, policy = CASES[name], FullCache(7)
    model = (it.params, it.config, policy)
    cache = empty_cache(it, policy)
    past = [[[] for _ in range(it.config.num_layers)] for _ in range(it.batch)]
    for index in range(3):
        start, frames = jnp.int32(2 * index), [2 * index, 2 * index + 1]
        noisy, clean = it.latents(10 + index, it.batch, 2), it.latents(20 + index, it.batch, 2)
        t, t_clean = times(it, 30 + index, 2), times(it, 40 + index, 2, highest=50)
        flow, _ = denoise(*model, *map(jnp.asarray, (noisy, t)), it.text_kv, cache, start)
        cache, _ = commit(*model, *map(jnp.asarray, (clean, t_clean)), it.text_kv, cache, start)
        for b in range(it.batch):
            expected, _ = it.oracle.forward(noisy[b], t[b], it.text[b], frames, past[b])
            # Values of order one pass through up to three layers; measured error 3e-6.
            assert np.abs(expected).mean() > 0.1
            assert_close(flow[b], expected, message=f"flow of chunk {index}")
            _, own = it.oracle.forward(clean[b], t_clean[b], it.text[b], frames, past[b])
            for layer, (k, v) in zip(past[b], own, strict=True):
                layer.extend(zip(frames, k, v, strict=True))
    compare_full_cache(it, cache, past)


def compare_full_cache(it, cache, past):
    """Slot f holds frame f; keys un-rotated; [L, B, N, S, H] against [S, N H]."""
    held = np.broadcast_to([0, 1, 2, 3, 4, 5, -1], cache.frame_index.shape)
    np.testing.assert_array_equal(cache.frame_index, held)
    for b, layers in enumerate(past):
        for layer, frames in enumerate(layers):
            for which, stored in ((1, cache.k), (2, cache.v)):
                expected = np.concatenate([frame[which] for frame in frames])
                actual = np.asarray(stored)[layer, b].transpose(1, 0, 2)[: len(expected)]
                assert_close(actual.reshape(expected.shape), expected)


@pytest.mark.parametrize("start", [60_000, 10**6])
def test_hours_into_a_video(start):
    """Absolute positions far beyond float32's exact products and Wan's table of 1024."""
    it, policy = CASES["plain"], SlidingWindow(4, 0, rope="absolute")
    model, zeros = (it.params, it.config, policy), np.zeros((1, 2), np.float32)
    first, second = it.latents(1, 1, 2), it.latents(2, 1, 2)
    cache = empty_cache(it, policy)
    cache, _ = commit(
        *model, *map(jnp.asarray, (first, zeros)), it.text_kv, cache, jnp.int32(start)
    )
    flow, _ = denoise(
        *model, *map(jnp.asarray, (second, zeros)), it.text_kv, cache, jnp.int32(start + 2)
    )
    frames = [start, start + 1]
    _, own = it.oracle.forward(first[0], zeros[0], it.text[0], frames)
    past = [list(zip(frames, k, v, strict=True)) for k, v in own]
    expected, _ = it.oracle.forward(second[0], zeros[0], it.text[0], [start + 2, start + 3], past)
    assert_close(flow[0], expected)
    wrong, _ = it.oracle.forward(second[0], zeros[0], it.text[0], [start + 3, start + 4], past)
    assert np.abs(wrong - expected).max() > 1e-3


def test_bfloat16_stays_close():
    """Same rounded weights on both sides; what differs is bfloat16 arithmetic and storage."""
    it, policy = CASES["three-layers-four-heads"], FullCache(4)
    params = convert_dit(it.state, it.config, dtype=jnp.bfloat16)
    rounded = lambda x: x.astype(jnp.bfloat16).astype(np.float32)
    oracle = WanOracle({name: rounded(x) for name, x in it.state.items()}, it.config)
    encode = jax.jit(wan_dit.encode_text, static_argnums=1, compiler_options=QUICK)
    text_kv = encode(params, it.config, jnp.asarray(it.text))
    cache = empty_cache(it, policy, dtype=jnp.bfloat16)
    model = (params, it.config, policy)
    clean, noisy = it.latents(1, 1, 2), it.latents(2, 1, 2)
    t, zeros = times(it, 3, 2), np.zeros((1, 2), np.float32)
    cache, _ = commit(*model, *map(jnp.asarray, (clean, zeros)), text_kv, cache, jnp.int32(0))
    flow, _ = denoise(*model, *map(jnp.asarray, (noisy, t)), text_kv, cache, jnp.int32(2))
    assert cache.k.dtype == cache.v.dtype == jnp.bfloat16 and flow.dtype == jnp.bfloat16
    _, own = oracle.forward(clean[0], zeros[0], it.text[0], [0, 1])
    past = [list(zip([0, 1], k, v, strict=True)) for k, v in own]
    expected, _ = oracle.forward(noisy[0], t[0], it.text[0], [2, 3], past)
    error = np.asarray(flow, np.float32)[0] - expected
    relative = np.sqrt(np.mean(error**2) / np.mean(expected**2))
    assert relative < 0.03


def test_denoise_writes_nothing_and_is_causal_over_chunks():
    it, policy = CASES["plain"], FullCache(7)
    model, zeros = (it.params, it.config, policy), jnp.zeros((1, 2))
    chunk = jnp.asarray(it.latents(1, 1, 2))
    cache, _ = commit(*model, chunk, zeros, it.text_kv, empty_cache(it, policy), jnp.int32(0))
    before = [np.asarray(leaf) for leaf in jax.tree.leaves(cache)]
    denoise(*model, chunk, zeros, it.text_kv, cache, jnp.int32(2))
    assert all(map(same_bits, jax.tree.leaves(cache), before))
    later, _ = commit(*model, 2 * chunk, zeros, it.text_kv, cache, jnp.int32(2))
    tokens = 2 * 6
    assert same_bits(later.k[..., :tokens, :], cache.k[..., :tokens, :])
    assert not same_bits(later.k[..., tokens : 2 * tokens, :], cache.k[..., tokens : 2 * tokens, :])


@pytest.mark.parametrize("name", ["plain", "smallest-heads"])
def test_text_padding_is_attended_like_any_token(name):
    it = CASES[name]
    keys, values, is_text = it.text_kv
    c = it.config
    is_said = np.arange(c.text_len) < len(it.text[0])
    assert same_bits(is_text, np.broadcast_to(is_said, is_text.shape))
    assert keys.shape == values.shape == (c.num_layers, 1, c.num_heads, c.text_len, c.head_dim)
    embedded = it.oracle.embed_text(it.text[0])
    for layer in range(c.num_layers):
        _, k, v = it.oracle.qkv(f"blocks.{layer}.cross_attn", embedded[:1], embedded)
        for actual, expected in ((keys, k), (values, v)):
            tokens_first = np.asarray(actual[layer, 0]).transpose(1, 0, 2)
            assert_close(tokens_first.reshape(expected.shape), expected)
        # Zero padding embeds to something, so leaving it out would show.
        assert np.abs(v[-1]).max() > 1e-2
    unpadded = np.zeros((1, c.text_len, c.text_dim), np.float32)
    unpadded[:, : it.text.shape[1]] = it.text
    explicit = wan_dit.encode_text(it.params, c, jnp.asarray(unpadded))
    assert_close(explicit[0], keys)


@pytest.mark.parametrize("shape", [(1, 6, 7), (1, 5, 8), (2, 1, 6)])
def test_text_that_does_not_fit_is_refused(shape):
    it = CASES["plain"]
    message = f"text embeddings of {shape[1]} x {shape[2]} do not fit .*text_len=5 x text_dim=7"
    with pytest.raises(ValueError, match=message):
        wan_dit.encode_text(it.params, it.config, jnp.zeros(shape))


def test_cache_of_all_layers():
    it, policy = CASES["plain"], FullCache(7)
    cache = empty_cache(it, policy)
    assert cache.k.shape == cache.v.shape == (2, 1, 2, 7 * 6, 12)
    assert cache.frame_index.shape == (2, 1, 7)
    assert wan_dit.cache_nbytes(cache) == 2 * (2 * 2 * 42 * 12 * 4) + 2 * 7 * 4
    abstract = jax.eval_shape(lambda: jax.tree.leaves(cache))
    assert wan_dit.cache_nbytes(abstract) == wan_dit.cache_nbytes(cache)


def test_size_that_does_not_patchify_is_refused():
    it = CASES["plain"]
    with pytest.raises(ValueError, match="latents of 5 x 6 do not split into patches of 2 x 2"):
        wan_dit.cache_spec(it.config, 1, (5, 6), 3, jnp.float32)
