"""The sprite codec: streams, is normalised, and keeps what one has to see."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidcache_jax.models.codec import Codec, to_uint8
from vidcache_jax.tiny import model, world
from vidcache_jax.tiny.codec import SpriteCodec


@pytest.fixture(scope="module")
def shipped():
    loaded = model.load()
    return loaded.codec, loaded.codec_params


@pytest.fixture(scope="module")
def clip() -> jax.Array:
    """Frames of eight scenes, [8, 4, 64, 64, 3]."""

    @jax.jit
    @jax.vmap
    def draw(key):
        return world.render(world.sample_scene(key), jnp.arange(0, 40, 10, dtype=jnp.int32))

    return draw(jax.random.split(jax.random.key(77), 8))


def test_is_a_codec():
    assert isinstance(SpriteCodec(), Codec)
    with pytest.raises(ValueError, match="fine_width=0"):
        SpriteCodec(fine_width=0)


def test_held_out_frames_come_back(shipped, clip):
    codec, params = shipped
    latents, state = codec.encode(params, clip, codec.init_state(8, 8, 8))
    assert latents.shape == (8, 4, 8, 8, 16) and state == ()
    decoded, _ = codec.decode(params, latents, codec.init_state(8, 8, 8))
    psnr = -10 * np.log10(float(jnp.mean((decoded - clip) ** 2)) / 4)
    assert psnr > 29  # 32 dB over many scenes


def test_latents_are_normalised(shipped, clip):
    codec, params = shipped
    latents, _ = codec.encode(params, clip, ())
    assert abs(float(latents.mean())) < 0.2 and 0.8 < float(latents.std()) < 1.2


def test_streaming_equals_all_at_once(shipped):
    codec, params = shipped
    latents = jax.random.normal(jax.random.key(0), (2, 3, 8, 8, 16))
    whole, _ = codec.decode(params, latents, ())
    first, state = codec.decode(params, latents[:, :1], ())
    rest, _ = codec.decode(params, latents[:, 1:], state)
    np.testing.assert_allclose(np.concatenate([first, rest], axis=1), whole, atol=1e-5)
    assert codec.num_pixel_frames(3) == whole.shape[1]


def test_other_sizes_and_refusal(shipped):
    codec, params = shipped
    latents, _ = codec.encode(params, jnp.zeros((1, 1, 16, 40, 3)), ())
    assert latents.shape == (1, 1, 2, 5, 16)
    with pytest.raises(ValueError, match="60 x 64 pixels; both must be multiples of 8"):
        codec.encode(params, jnp.zeros((1, 1, 60, 64, 3)), ())


def test_to_uint8_rounds_and_clips():
    pixels = to_uint8(jnp.asarray([-2.0, -1.0, 0.0, 0.999, 1.0, 3.0]))
    assert pixels.dtype == jnp.uint8
    np.testing.assert_array_equal(pixels, [0, 0, 128, 255, 255, 255])
