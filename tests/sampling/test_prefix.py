"""A prefix is committed as if the model had made it; files become prefixes."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import vidcache_jax as vj
from tests.models.cases import QUICK
from tests.toy import toy_model, toy_wan_model
from vidcache_jax.models import wan_dit
from vidcache_jax.models.codec import from_uint8, to_uint8
from vidcache_jax.sampling.prefix import prefix_chunks, read_prefix
from vidcache_jax.sampling.rollout import Rollout, chunk_noise
from vidcache_jax.testing import assert_close

PROMPT = "a red circle bounces"
POLICY = vj.SlidingWindow(window_size=7, sink_size=2)


def noise_video(num_frames: int, height: int = 4, width: int = 8) -> np.ndarray:
    shape = (num_frames, height, width, 3)
    return np.random.default_rng(num_frames).integers(0, 256, shape).astype(np.uint8)


def quick(function, **options):
    return jax.jit(function, compiler_options=QUICK, **options)


def test_prefix_and_recached_frames_are_committed_and_the_video_goes_on():
    """Everything once more by hand: encode in one piece, commit, draw noise, step, decode."""
    model = toy_wan_model()
    prefix = noise_video(11)  # two chunks: 5 and 6 frames
    session = vj.Session(model, POLICY, prompt=PROMPT, seed=3, prefix=prefix, recache_frames=6)

    config, codec, params = model.config, model.codec, model.params
    encode = quick(lambda frames: codec.encode(model.codec_params, frames, None)[0])
    latents = encode(from_uint8(jnp.asarray(prefix[None])))
    assert latents.shape[:2] == (1, 6)
    encode_text = quick(wan_dit.encode_text, static_argnums=1)
    text_kv = encode_text(params, config, model.embed_text(PROMPT)[None])
    rollout = Rollout(config, model.rollout, POLICY)
    state = rollout.init(1, model.latent_size, jnp.float32)
    commit = quick(functools.partial(wan_dit.commit, params, config, POLICY))

    def committed(latents, text_kv):
        cache = state.cache
        for start in (0, 3):
            own = latents[:, start : start + 3]
            cache, _ = commit(own, jnp.zeros((1, 3)), text_kv, cache, jnp.int32(start))
        assert_close(session.cache.k, cache.k)
        assert_close(session.cache.v, cache.v)
        np.testing.assert_array_equal(session.cache.frame_index, cache.frame_index)
        return cache

    cache = committed(latents, text_kv)
    assert session.chunks_made == 2

    shape = (1, 3, *model.latent_size, 16)
    noise = chunk_noise(jax.random.key(3), jnp.int32(2), 2, shape)
    step = quick(rollout.step)
    _, chunk = step(params, type(state)(cache, jnp.int32(6)), text_kv, *noise)
    decode = quick(lambda latents: codec.decode(model.codec_params, latents, None)[0])
    whole = np.asarray(to_uint8(decode(jnp.concatenate([latents, chunk.latents], axis=1))))[0]
    (made,) = session.generate(6 / 8)
    given = np.concatenate([session.prefix_frames, made]).astype(int)
    assert given.shape == whole.shape == (17, 4, 8, 3)
    assert abs(given - whole).max() <= 1

    # Another prompt: the latest six frames once more, as if a video began with them.
    session.change_prompt("a blue square circles")
    text_kv = encode_text(params, config, model.embed_text("a blue square circles")[None])
    cache = committed(jnp.concatenate([latents[:, 3:], chunk.latents], axis=1), text_kv)
    noise = chunk_noise(jax.random.key(3), jnp.int32(3), 2, shape)
    _, chunk = step(params, type(state)(cache, jnp.int32(6)), text_kv, *noise)
    assert sum(len(frames) for frames in session.generate(6 / 8)) == 6
    assert_close(session.latents, chunk.latents[0])


def test_without_a_prefix_there_are_no_prefix_frames():
    session = vj.Session(toy_model(), POLICY, prompt=PROMPT)
    assert session.prefix_frames.shape == (0, 16, 32, 3) and session.chunks_made == 0


@pytest.mark.parametrize(
    ("given", "chunks"),
    [
        (1, [[0] * 5]),
        (3, [[0, 0, 0, 1, 2]]),
        (5, [[0, 1, 2, 3, 4]]),
        (10, [[5, 6, 7, 8, 9]]),
        (12, [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]),
    ],
)
def test_whole_chunks_of_the_latest_frames(given, chunks):
    frames = noise_video(given)
    cut = prefix_chunks(frames, toy_wan_model())
    assert len(cut) == len(chunks)
    for own, indices in zip(cut, chunks, strict=True):
        np.testing.assert_array_equal(own, frames[indices])


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        (noise_video(3, 8, 8), "3 frames of 8 x 8 pixels; the model makes 4 x 8, read_prefix"),
        (noise_video(0), "0 frames of 4 x 8"),
    ],
)
def test_prefixes_of_another_shape(prefix, message):
    with pytest.raises(ValueError, match=message):
        prefix_chunks(prefix, toy_wan_model())


def test_a_prefix_longer_than_a_full_cache():
    with pytest.raises(ValueError, match="holds 3 latent frames, but this video needs 6"):
        vj.Session(toy_wan_model(), vj.FullCache(3), prompt=PROMPT, prefix=noise_video(11))


def gradient(height: int, width: int) -> np.ndarray:
    """Red grows downwards, green to the right."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([255 * y / height, 255 * x / width, 0 * x], -1).astype(np.uint8)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_an_image_is_scaled_and_its_edges_are_cut(tmp_path, mode):
    """64 x 32 pixels to 16 x 32: half the size, and the middle half of the rows."""
    Image.fromarray(gradient(64, 64)).convert(mode).save(tmp_path / "image.png")
    frames = read_prefix(tmp_path / "image.png", toy_model())
    assert frames.shape == (1, 16, 32, 3) and frames.dtype == np.uint8
    if mode == "RGB":
        wanted = gradient(32, 32)[8:24]
        assert abs(frames[0].astype(int) - wanted).max() <= 6


def test_a_sideways_photograph_is_turned(tmp_path):
    image, exif = Image.fromarray(gradient(32, 16)), Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    image.save(tmp_path / "photo.png", exif=exif)
    frames = read_prefix(tmp_path / "photo.png", toy_model())
    assert frames[0, 8, 4, 0] > frames[0, 8, 28, 0] + 100


@pytest.mark.parametrize(
    ("fps", "indices"), [(8, [0, 1, 2, 3, 4, 5]), (4, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]),
                         (16, [0, 2, 4])]
)  # fmt: skip
def test_a_video_is_sampled_at_the_models_rate(tmp_path, fps, indices):
    greys = np.arange(20, 240, 40, dtype=np.uint8)
    with vj.VideoWriter(tmp_path / "clip.mp4", fps=fps) as video:
        video.write(np.broadcast_to(greys[:, None, None, None], (6, 16, 32, 3)))
    frames = read_prefix(tmp_path / "clip.mp4", toy_model())
    shown = [int(abs(greys.astype(int) - frame.mean()).argmin()) for frame in frames]
    assert shown == indices


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("none.png", None, FileNotFoundError, "no file .*none.png to begin the video with"),
        ("text.png", b"text", ValueError, "text.png is no image or video"),
        ("cut.png", "cut", ValueError, "cut.png"),
    ],
)
def test_files_that_are_no_prefix(tmp_path, name, content, error, message):
    path: Path = tmp_path / name
    if content == "cut":
        Image.fromarray(noise_video(1, 64, 64)[0]).save(path)
        path.write_bytes(path.read_bytes()[:2000])
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(error, match=message):
        read_prefix(path, toy_model())
