"""Norms, time embedding and projections of the Wan block, against float64 NumPy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidcache_jax.models.layers import (
    AttentionProjections,
    LayerNorm,
    RMSNorm,
    join_heads,
    modulate,
    per_token,
    split_heads,
    timestep_sinusoid,
)
from vidcache_jax.sampling.schedule import warp
from vidcache_jax.testing import assert_close

sinusoid = jax.jit(timestep_sinusoid, static_argnums=1)
DTYPES = [jnp.float32, jnp.bfloat16]


def normal(seed, *shape, scale=1.0, mean=0.0):
    values = np.random.default_rng(seed).normal(size=shape)
    return (scale * values + mean).astype(np.float32)


def close(actual, expected, dtype):
    """Within the table's entry, relative to the largest value (sums over channels cancel)."""
    scale = np.abs(expected).max()
    assert_close(np.asarray(actual).astype(np.float64) / scale, expected / scale, dtype)


def apply(module: nn.Module, params, x) -> jax.Array:
    return jax.jit(module.apply)({"params": params}, x)  # type: ignore[return-value]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 5, 12), (3, 7), (2, 2, 4, 6)])
def test_rms_norm(shape, dtype):
    x = jnp.asarray(normal(0, *shape, scale=3, mean=1), dtype)
    scale = jnp.asarray(normal(1, shape[-1]), dtype)
    out = apply(RMSNorm(1e-6), {"scale": scale}, x)
    x64 = np.asarray(x).astype(np.float64)
    expected = x64 / np.sqrt(np.mean(x64**2, axis=-1, keepdims=True) + 1e-6)
    assert out.dtype == dtype
    assert_close(out, expected * np.asarray(scale).astype(np.float64), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("affine", [False, True])
def test_layer_norm(affine, dtype):
    x = jnp.asarray(normal(0, 2, 5, 12, scale=3, mean=4), dtype)
    scale, bias = (jnp.asarray(normal(seed, 12), dtype) for seed in (1, 2))
    params = {"scale": scale, "bias": bias} if affine else {}
    out = apply(LayerNorm(1e-6, affine), params, x)
    x64, scale64, bias64 = (np.asarray(v).astype(np.float64) for v in (x, scale, bias))
    expected = (x64 - x64.mean(-1, keepdims=True)) / np.sqrt(x64.var(-1, keepdims=True) + 1e-6)
    assert out.dtype == dtype
    assert_close(out, expected * scale64 + bias64 if affine else expected, dtype)


@pytest.mark.parametrize("norm", [RMSNorm(1e-2), LayerNorm(1e-2)])
def test_eps_is_that_of_the_module_and_keeps_zeros(norm):
    x = jnp.asarray(normal(3, 1, 8, scale=0.01))
    out = norm.apply({"params": {"scale": jnp.ones(8)}}, x)
    centred = np.asarray(x, np.float64)
    if isinstance(norm, LayerNorm):
        centred = centred - centred.mean()
    assert_close(out, centred / np.sqrt(np.mean(centred**2) + 1e-2))
    zeros = norm.apply({"params": {"scale": jnp.ones(8)}}, jnp.zeros((1, 8)))
    np.testing.assert_array_equal(zeros, np.zeros((1, 8)))


def test_layer_norm_of_a_large_mean_does_not_cancel():
    x = normal(4, 1, 64, mean=1000.0)
    x64 = x.astype(np.float64)
    expected = (x64 - x64.mean()) / np.sqrt(x64.var() + 1e-6)
    assert_close(LayerNorm(1e-6).apply({}, jnp.asarray(x)), expected, jnp.float16)


def test_non_affine_norms_have_no_parameters():
    x = jnp.ones((1, 8))
    assert LayerNorm(1e-6).init(jax.random.key(0), x) == {}
    params = LayerNorm(1e-6, affine=True).init(jax.random.key(0), x)["params"]
    np.testing.assert_array_equal(params["scale"], np.ones(8))
    np.testing.assert_array_equal(params["bias"], np.zeros(8))


@pytest.mark.parametrize("freq_dim", [256, 32, 6, 2])
def test_sinusoid(freq_dim):
    steps = [0, 0.25, 1, 250, 625, 833.3333, 937.5, 952.4, 999.999, 1000]
    timestep = jnp.asarray([steps, steps[::-1]], jnp.float32)
    out = sinusoid(timestep, freq_dim)
    half = freq_dim // 2
    angle = np.asarray(timestep).astype(np.float64)[..., None] * 10000.0 ** (
        -np.arange(half) / half
    )
    assert out.shape == (2, len(steps), freq_dim) and out.dtype == jnp.float32
    expected = np.concatenate([np.cos(angle), np.sin(angle)], axis=-1)
    np.testing.assert_allclose(out, expected, rtol=0, atol=2e-6)


def test_sinusoid_of_the_schedule():
    """Cosines come first; the first frequency is 1 radian per unit of time."""
    steps = warp([1000, 750, 500, 250], 5.0)
    out = np.asarray(sinusoid(jnp.asarray(steps, jnp.float32)[None], 256))[0]
    np.testing.assert_allclose(out[:, 0], np.cos(steps), atol=5e-5)
    np.testing.assert_allclose(out[:, 128], np.sin(steps), atol=5e-5)


def test_modulate_uses_each_frames_own_shift_and_scale():
    x, shift, scale = normal(0, 2, 6, 4), normal(1, 2, 3, 4), normal(2, 2, 3, 4)
    out = modulate(*map(jnp.asarray, (x, shift, scale)))
    for token in range(6):
        frame = token // 2
        assert_close(out[:, token], x[:, token] * (1.0 + scale[:, frame]) + shift[:, frame])


def test_per_token_repeats_frame_by_frame():
    values = jnp.asarray([[[1.0], [2.0]]])
    np.testing.assert_array_equal(per_token(values, 6)[0, :, 0], [1, 1, 1, 2, 2, 2])


def test_modulate_keeps_bfloat16():
    x, shift, scale = (jnp.asarray(normal(i, 1, 2, 4), jnp.bfloat16) for i in range(3))
    assert modulate(x, shift, scale).dtype == jnp.bfloat16


def test_heads_are_consecutive_channels():
    x = jnp.arange(2 * 3 * 8, dtype=jnp.float32).reshape(2, 3, 8)
    split = split_heads(x, 4)
    assert split.shape == (2, 4, 3, 2)
    np.testing.assert_array_equal(split[1, 2, 0], x[1, 0, 4:6])
    np.testing.assert_array_equal(join_heads(split), x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("qk_norm", [True, False])
def test_projections_normalise_over_the_full_width(qk_norm, dtype):
    module = AttentionProjections(dim=8, num_heads=4, qk_norm=qk_norm, eps=1e-6)
    x = jnp.asarray(normal(0, 1, 3, 8), dtype)

    def all_of(m, x):
        return m.query(x), m.key_value(x), m.output(m.query(x), x.dtype)

    init = lambda key: nn.init(all_of, module)(key, x.astype(jnp.float32))["params"]
    shapes = jax.eval_shape(init, jax.random.key(0))
    assert ("norm_q" in shapes) == ("norm_k" in shapes) == qk_norm
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), dtype), shapes)
    q, (k, v), out = jax.jit(nn.apply(all_of, module))({"params": params}, x)
    assert q.shape == k.shape == v.shape == (1, 4, 3, 2) and out.shape == (1, 3, 8)
    assert {y.dtype for y in (q, k, v, out)} == {jnp.dtype(dtype)}
    x64 = np.asarray(x).astype(np.float64)
    wide = lambda x: np.asarray(x).astype(np.float64)
    linear = lambda name, x: x @ wide(params[name]["kernel"]) + wide(params[name]["bias"])
    for name, actual in (("q", q), ("k", k), ("v", v)):
        expected = linear(name, x64)
        if qk_norm and name != "v":
            expected = expected / np.sqrt(np.mean(expected**2, -1, keepdims=True) + 1e-6)
            expected = expected * wide(params[f"norm_{name}"]["scale"])
        close(join_heads(actual), expected, dtype)
    close(out, linear("o", wide(join_heads(q))), dtype)
