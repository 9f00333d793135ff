"""The whole autoencoder against diffusers' AutoencoderKLWan, and what a codec promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from checkpoints_convert.rules import apply_rules
from checkpoints_convert.wan_vae import WAN_VAE_RULES
from tests.models.wan_vae.cases import SMALL, WAN_LIKE, decode, encode, normal
from vidcache_jax.models.codec import Codec
from vidcache_jax.models.wan_vae import WanVAE, WanVAEConfig
from vidcache_jax.testing import assert_close, same_bits


def pixels(seed, *shape):
    return np.clip(0.5 * normal(seed, *shape), -1, 1)


def stream(step, it, params, video, plan):
    """A video in chunks; also checks that the state keeps its size."""
    assert sum(plan) == video.shape[1]
    state, out, sizes = it.vae.init_state(len(video), 1, 1), [], set()
    for chunk in np.split(video, np.cumsum(plan)[:-1], axis=1):
        y, state = step(it.vae, params, jnp.asarray(chunk), state)
        out.append(np.asarray(y))
        sizes.add(str(jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state)))
    assert len(sizes) == 1
    return np.concatenate(out, axis=1)


def test_equals_diffusers_at_the_depth_of_wan():
    it, params = WAN_LIKE, WAN_LIKE.params()
    frames, latents = pixels(1, 1, 9, 16, 24, 3), normal(2, 1, 3, 2, 3, 3)
    expected = it.torch_encode(frames)
    assert expected.shape == (1, 3, 2, 3, 3) and np.abs(expected).mean() > 0.1
    assert_close(stream(encode, it, params, frames, (9,)), expected)
    expected = it.torch_decode(latents)
    assert expected.shape == (1, 9, 16, 24, 3)
    assert 0.02 < expected.std() and np.abs(expected).max() < 1
    assert_close(stream(decode, it, params, latents, (3,)), expected)


DECODE_PLANS = [(1,) * 6, (3, 3), (1, 3, 1, 1)]
ENCODE_PLANS = [(1, 8, 8), (1, 4, 4, 4, 4), (9, 8), (9, 4, 4)]


def test_encode_equals_diffusers_however_the_video_is_cut():
    it, params, frames = SMALL, SMALL.params(), pixels(3, 2, 17, 8, 12, 3)
    expected = it.torch_encode(frames)
    for plan in ENCODE_PLANS:
        assert_close(stream(encode, it, params, frames, plan), expected, message=str(plan))


def test_decode_equals_diffusers_however_the_video_is_cut():
    it, params, latents = SMALL, SMALL.params(), normal(3, 2, 6, 2, 3, 2)
    expected = it.torch_decode(latents)
    assert expected.shape[1] == 21 and np.abs(expected).max() < 1
    for plan in DECODE_PLANS:
        assert_close(stream(decode, it, params, latents, plan), expected, message=str(plan))


@pytest.mark.parametrize("step", [encode, decode], ids=["encode", "decode"])
def test_bfloat16_is_as_close_as_torch(step):
    """Distance to the float32 result, of ours and of diffusers in bfloat16."""
    it, params = SMALL, SMALL.params(jnp.bfloat16)
    half = SMALL.in_dtype(torch.bfloat16)
    if step is encode:
        video = pixels(3, 2, 5, 8, 12, 3)
        expected, theirs = it.torch_encode(video), half.torch_encode(video)
    else:
        video = normal(3, 2, 2, 2, 3, 2)
        expected, theirs = it.torch_decode(video), half.torch_decode(video)
    ours = stream(step, it, params, video, (len(video[0]),))
    assert ours.dtype == np.float32
    distance = lambda x: np.sqrt(np.mean((x - expected) ** 2)) / expected.std()
    # Measured 0.9 % of ours and 1.0 % of theirs encoding, 4.5 % and 7.1 % decoding.
    assert 1e-4 < distance(ours) < min(0.1, 1.5 * distance(theirs))


def test_a_stream_is_two_programs_of_constant_memory():
    """One for the first chunk, one for all later ones, whose state is as large as the next."""
    traced = []

    def count(params, latents, state):
        traced.append(latents.shape)
        return SMALL.vae.decode(params, latents, state)

    shapes = jax.eval_shape(SMALL.vae.abstract_params)
    step, state = jax.jit(count), None
    for _ in range(4):
        latents = jax.ShapeDtypeStruct((1, 3, 2, 3, 2), jnp.float32)
        frames, state = step.eval_shape(shapes, latents, state)
        num_frames = frames.shape[1]
    assert len(traced) == 2 and num_frames == 12


def test_causal_and_independent_over_the_batch():
    it, params = SMALL, SMALL.params()
    latents = normal(4, 2, 3, 2, 3, 2)
    other = latents.copy()
    other[0, 2] += 1
    frames, changed = (decode(it.vae, params, jnp.asarray(x), None)[0] for x in (latents, other))
    assert same_bits(frames[0, :5], changed[0, :5]) and same_bits(frames[1], changed[1])
    assert not np.allclose(frames[0, 5:], changed[0, 5:])


def test_pixels_are_clipped():
    bias = SMALL.state | {"decoder.head.2.bias": np.array([5, -5, 0], np.float32)}
    params = apply_rules(WAN_VAE_RULES, bias, SMALL.vae.abstract_params(), jnp.float32)
    frames, _ = decode(SMALL.vae, params, jnp.asarray(normal(0, 2, 1, 2, 3, 2)), None)
    np.testing.assert_array_equal(frames[..., 0], np.ones((2, 1, 8, 12)))
    np.testing.assert_array_equal(frames[..., 1], -np.ones((2, 1, 8, 12)))


def test_facts_of_wan():
    vae = WanVAE()
    assert isinstance(vae, Codec) and hash(vae) == hash(WanVAE(WanVAEConfig()))
    assert (vae.spatial_stride, vae.temporal_stride, vae.latent_channels) == (8, 4, 16)
    assert [vae.num_pixel_frames(n) for n in (0, 1, 2, 3, 21)] == [0, 1, 5, 9, 81]


def test_shapes_at_480p():
    """Abstractly: no weight and no pixel is allocated."""
    vae, params = WanVAE(), WanVAE().abstract_params(jnp.bfloat16)
    latents = jax.ShapeDtypeStruct((1, 3, 60, 104, 16), jnp.float32)
    frames, state = jax.eval_shape(vae.decode, params, latents, None)
    assert frames.shape == (1, 9, 480, 832, 3) and frames.dtype == jnp.float32
    later, _ = jax.eval_shape(vae.decode, params, latents, state)
    assert later.shape == (1, 12, 480, 832, 3)
    back, state = jax.eval_shape(vae.encode, params, frames, None)
    assert back.shape == latents.shape
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize(
    ("shape", "state", "message"),
    [
        ((1, 1, 60, 64, 3), None, "60 x 64 pixels; both must be multiples of 8"),
        ((1, 4, 16, 16, 3), None, r"chunk of 4 frames; the first .* 1 \+ 4 n frames"),
        ((1, 5, 16, 16, 3), (), r"chunk of 5 frames; .* later ones 4 n"),
    ],
)
def test_frames_that_do_not_fit(shape, state, message):
    with pytest.raises(ValueError, match=message):
        WanVAE().encode(WanVAE().abstract_params(), jnp.zeros(shape), state)


def test_latents_that_do_not_fit():
    with pytest.raises(ValueError, match="latents of 4 channels; this VAE has 16"):
        WanVAE().decode({}, jnp.zeros((1, 1, 2, 2, 4)), None)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(dim=0), "dim=0 must be positive"),
        (dict(dim_mult=()), r"dim_mult=\(\) must be positive"),
        (dict(dim_mult=(1, 2)), "for each of the 1 steps"),
        (dict(dim=3, dim_mult=(1, 1, 1, 1)), "must be even"),
        (dict(z_dim=4), "latent_mean has 16 values, z_dim=4"),
        (dict(latent_std=(0.0,) * 16), "latent_std=.* must be positive"),
    ],
)
def test_configs_that_make_no_sense(fields, message):
    with pytest.raises(ValueError, match=message):
        WanVAEConfig(**fields)
