"""The shipped weights: small, complete, and good at what the README says they do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vidcache_jax as vj
from vidcache_jax.tiny import model, paint, training
from vidcache_jax.tiny.spotting import spot
from vidcache_jax.tiny.weights_io import WEIGHTS, load_weights, save_weights


@pytest.fixture(scope="module")
def tiny() -> vj.VideoModel:
    return vj.load_model("tiny")


def test_weights_are_small_and_loaded_as_float32(tiny):
    assert sum(path.stat().st_size for path in WEIGHTS.glob("*.safetensors")) < 10e6
    assert {leaf.dtype for leaf in jax.tree.leaves(tiny.params)} == {jnp.dtype(jnp.float32)}
    assert tiny.config == vj.WanConfig.tiny() and tiny.frame_size == (64, 64)


def test_held_out_loss(tiny):
    """Flow loss on clips never trained on; an untrained model is at about 2."""
    clips = training.ClipConfig()

    @jax.jit
    def loss(key):
        data_key, noise_key = jax.random.split(key)
        clip = training.sample_clips(data_key, 2, clips)
        latents, _ = tiny.codec.encode(tiny.codec_params, clip.frames, ())
        return training.flow_loss(tiny.params, tiny.config, latents, clip, noise_key, clips)

    keys = jax.random.split(jax.random.key(2024), 4)
    assert np.mean([float(loss(key)) for key in keys]) < 0.5


@pytest.mark.parametrize("place", paint.PLACES)
def test_the_place_is_recognisable_and_stays(tiny, place):
    """The top and bottom rows have the colours of the place that was asked for, to the end."""
    session = vj.Session(
        tiny, vj.SlidingWindow(21, 3), prompt=f"a circle bounces in the {place}", seed=1
    )
    frames = np.concatenate(list(session.generate(9))).astype(np.float32) / 255
    sky, _, _, ground = np.moveaxis(paint.PLACE_RGB, 1, 0)
    for part in (frames[:9], frames[-9:]):
        # Medians: sprites may be there, too.
        top = np.median(part[:, :2], axis=(0, 1, 2))
        bottom = np.median(part[:, -2:], axis=(0, 1, 2))
        distance = np.abs(sky - top).sum(axis=-1) + np.abs(ground - bottom).sum(axis=-1)
        assert paint.PLACES[int(np.argmin(distance))] == place


@pytest.mark.parametrize(
    ("colour", "shape", "motion", "place"),
    [
        ("red", "circle", "bounces", "meadow"),
        ("yellow", "square", "bounces", "meadow"),
        ("purple", "circle", "bounces", "desert"),
        ("pink", "square", "circles", "meadow"),
    ],
)
def test_the_sprite_is_the_one_that_was_asked_for(tiny, colour, shape, motion, place):
    """A sprite of its colour, and of no other, is found in most frames of the first six seconds."""
    text = f"a {colour} {shape} {motion} in the {place}, camera still"
    session = vj.Session(tiny, vj.SlidingWindow(21, 3), prompt=text, seed=0)
    frames = np.concatenate(list(session.generate(6)))
    found = {name: spot(frames, name).found.mean() for name in paint.COLOURS}
    assert found.pop(colour) > 0.5
    assert max(found.values()) < 0.3, found


def test_what_is_found_moves_as_told(tiny):
    """A sprite that bounces goes to a cell at a corner of its own, every other frame."""
    text = "a purple circle bounces in the desert, camera still"
    session = vj.Session(tiny, vj.SlidingWindow(21, 3), prompt=text, seed=0)
    spotted = spot(np.concatenate(list(session.generate(9))), "purple")
    both = spotted.found[:-2] & spotted.found[2:]
    across, down = (np.abs(x[2:] - x[:-2])[both] for x in (spotted.column, spotted.row))
    # By chance, 1 of 4 x 4 cells against a handful.
    assert len(across) > 20 and np.mean((across == 1) & (down == 1)) > 0.45


def test_weights_file_of_another_model_is_refused(tmp_path):
    shapes = {"a": {"kernel": jax.ShapeDtypeStruct((2, 3), jnp.float32)}}
    save_weights(tmp_path / "w.safetensors", {"a": {"kernel": np.ones((2, 3))}})
    loaded = load_weights(tmp_path / "w.safetensors", shapes)
    np.testing.assert_array_equal(loaded["a"]["kernel"], np.ones((2, 3)))
    assert loaded["a"]["kernel"].dtype == jnp.float32
    shapes["a"]["kernel"] = jax.ShapeDtypeStruct((3, 2), jnp.float32)
    with pytest.raises(ValueError, match="does not hold the weights of this model"):
        load_weights(tmp_path / "w.safetensors", shapes)
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]
    with pytest.raises(FileNotFoundError, match="no weights at .*; scripts/train_tiny.py makes"):
        load_weights(tmp_path / "other.safetensors", shapes)


def test_model_names():
    with pytest.raises(ValueError, match="no model 'huge'; there are tiny"):
        vj.load_model("huge")
    assert model.load().name == "tiny"
