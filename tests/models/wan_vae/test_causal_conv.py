"""The causal convolution against torch's Conv3d on the whole, front-padded video."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests.models.wan_vae.cases import QUICK, channels_first, channels_last, normal
from vidcache_jax.models.wan_vae.causal_conv import causal_conv
from vidcache_jax.testing import assert_close, same_bits

conv = jax.jit(causal_conv, static_argnums=3, compiler_options=QUICK)
PLANS = {1: [(7,), (1, 6), (3, 1, 1, 2), (1,) * 7], 2: [(8,), (2, 6), (4, 2, 2), (2,) * 4]}


def pieces(video, plan):
    return np.split(video, np.cumsum(plan)[:-1], axis=1)


def whole_video(x, kernel, stride):
    """Torch on all frames at once; before them lie k - s frames of zeros."""
    length, rows, columns = kernel.shape[:3]
    weight = torch.tensor(kernel.transpose(4, 3, 0, 1, 2))
    padded = torch.nn.functional.pad(channels_first(x), (0, 0, 0, 0, length - stride, 0))
    padding = (0, rows // 2, columns // 2)
    return channels_last(
        torch.nn.functional.conv3d(padded, weight, stride=(stride, 1, 1), padding=padding)
    )


@pytest.mark.parametrize(
    ("stride", "size"), [(1, (3, 3, 3)), (1, (3, 1, 1)), (2, (3, 1, 1)), (1, (1, 3, 1))]
)
def test_equals_torch_however_the_video_is_cut(stride, size):
    x, kernel = normal(0, 2, 6 + stride, 4, 5, 3), normal(1, *size, 3, 2)
    expected = whole_video(x, kernel, stride)
    for plan in PLANS[stride]:
        past, out = None, []
        for chunk in pieces(x, plan):
            y, past = conv(jnp.asarray(chunk), past, jnp.asarray(kernel), stride)
            out.append(y)
            assert past.shape == (2, size[0] - stride, 4, 5, 3)
            assert y.shape[1] == chunk.shape[1] // stride
        scale = np.abs(expected).max()
        assert_close(np.concatenate(out, axis=1) / scale, expected / scale, message=str(plan))


def test_keeps_the_last_frames_as_they_are():
    x, kernel = jnp.asarray(normal(0, 1, 4, 2, 2, 3)), jnp.asarray(normal(1, 3, 3, 3, 3, 1))
    _, past = conv(x, None, kernel, 1)
    assert same_bits(past, x[:, 2:])
    _, past = conv(x[:, :1], None, kernel, 1)
    assert same_bits(past, jnp.concatenate([jnp.zeros_like(x[:, :1]), x[:, :1]], axis=1))


def test_the_future_changes_nothing():
    x, kernel = normal(0, 1, 5, 3, 3, 2), jnp.asarray(normal(1, 3, 3, 3, 2, 2))
    later = x.copy()
    later[:, 3:] = np.nan
    y, other = (conv(jnp.asarray(video), None, kernel, 1)[0] for video in (x, later))
    assert same_bits(y[:, :3], other[:, :3]) and np.isnan(other[:, 3:]).all()
