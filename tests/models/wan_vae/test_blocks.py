"""Each block against diffusers' module of the same role, frame by frame with its feature cache."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    WanAttentionBlock,
    WanResample,
    WanResidualBlock,
    WanRMS_norm,
)

from checkpoints_convert.rules import apply_rules
from checkpoints_convert.wan_vae import WAN_VAE_RULES
from tests.models.wan_vae.cases import (
    QUICK,
    channels_first,
    channels_last,
    normal,
    randomize,
    wan_name,
)
from vidcache_jax.models.layers import RMSNorm
from vidcache_jax.models.wan_vae import blocks
from vidcache_jax.testing import assert_close

DTYPES = [jnp.float32, jnp.bfloat16]


def close(actual, expected, dtype):
    """Within the table's entry, relative to the largest value (sums over channels cancel)."""
    scale = np.abs(expected).max()
    assert_close(np.asarray(actual).astype(np.float64) / scale, expected / scale, dtype)


def prepare(module, ours, x, dtype):
    """Our block as a jitted function of (x, past), with the weights of torch's.

    Weights are rounded to the dtype on both sides; torch computes in float32.
    """
    randomize(module)
    for weight in module.parameters():
        weight.data = torch.tensor(np.asarray(weight.data.numpy().astype(dtype), np.float32))
    # Under the name of some block, so that the rules of the checkpoint apply.
    prefix = "encoder.downsamples.0."
    state = {wan_name(prefix + k, 2): v.numpy() for k, v in module.state_dict().items()}
    first = jnp.asarray(x[:, :1])
    shapes = jax.eval_shape(lambda: ours.init(jax.random.key(0), first, None)["params"])
    params = apply_rules(WAN_VAE_RULES, state, {"encoder": {"downsamples_0": shapes}}, dtype)
    own = {"params": params["encoder"]["downsamples_0"]}
    return jax.jit(lambda x, past: ours.apply(own, x, past), compiler_options=QUICK)


def stream(step, x, plan, dtype):
    past, out = None, []
    for chunk in np.split(x, np.cumsum(plan)[:-1], axis=1):
        y, past = step(jnp.asarray(chunk, dtype), past)
        assert y.dtype == dtype
        out.append(np.asarray(y, np.float32))
    return np.concatenate(out, axis=1)


def torch_stream(module, x, plan):
    """The reference's own plan, its feature cache in place."""
    cache, out = [None, None], []
    for chunk in torch.split(channels_first(x), plan, dim=2):
        with torch.no_grad():
            out.append(module(chunk, cache, [0]))
    return channels_last(torch.cat(out, dim=2))


def rounded(x, dtype):
    return np.asarray(x.astype(dtype), np.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("widths", [(4, 4), (3, 6)])
def test_residual_block(widths, dtype):
    x = rounded(normal(1, 2, 5, 4, 3, widths[0]), dtype)
    module = WanResidualBlock(*widths)
    step = prepare(module, blocks.ResidualBlock(widths[1]), x, dtype)
    close(stream(step, x, (1, 4), dtype), torch_stream(module, x, (1, 1, 3)), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_is_within_a_frame(dtype):
    x, module = rounded(normal(1, 2, 2, 3, 5, 8), dtype), WanAttentionBlock(8)
    step = prepare(module, blocks.FrameAttention(), x, dtype)
    with torch.no_grad():
        expected = channels_last(module(channels_first(x)))
    close(stream(step, x, (1, 1), dtype), expected, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", ["downsample2d", "downsample3d"])
def test_downsample(mode, dtype):
    x, module = rounded(normal(1, 2, 5, 4, 6, 3), dtype), WanResample(3, mode)
    step = prepare(module, blocks.Downsample(mode == "downsample3d"), x, dtype)
    expected = torch_stream(module, x, (1, 4))
    assert expected.shape == (2, 3 if mode == "downsample3d" else 5, 2, 3, 3)
    close(stream(step, x, (1, 2, 2), dtype), expected, dtype)
    close(stream(step, x, (5,), dtype), expected, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", ["upsample2d", "upsample3d"])
def test_upsample(mode, dtype):
    x, module = rounded(normal(1, 2, 4, 2, 3, 6), dtype), WanResample(6, mode)
    step = prepare(module, blocks.Upsample(mode == "upsample3d"), x, dtype)
    expected = torch_stream(module, x, (1, 1, 1, 1))
    assert expected.shape == (2, 7 if mode == "upsample3d" else 4, 4, 6, 3)
    close(stream(step, x, (1, 3), dtype), expected, dtype)
    close(stream(step, x, (2, 2), dtype), expected, dtype)


def test_norm():
    """Wan divides by the length and multiplies by sqrt(C): a root mean square without eps."""
    x, module = normal(1, 1, 2, 3, 4, 5), WanRMS_norm(5, images=False)
    x[0, 0, 0] *= 1e-6
    x[0, 1, 0, 0] = 0
    randomize(module)
    params = {"params": {"scale": jnp.asarray(module.gamma.data.numpy()[:, 0, 0, 0])}}
    actual = RMSNorm(blocks._EPS).apply(params, jnp.asarray(x))
    assert_close(actual, channels_last(module(channels_first(x)).detach()))
