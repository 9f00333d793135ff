"""The prompt language: what is said is read, what cannot be read is refused clearly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidcache_jax.config import WanConfig
from vidcache_jax.tiny import paint, prompt, world


def said(text: str) -> list[str]:
    return [prompt.WORDS[slot] for slot in prompt.tokenize(text)]


@pytest.mark.parametrize(
    ("text", "slots"),
    [
        ("a red circle bounces", ["red", "circle", "bounces", "", *[""] * 8]),
        ("A circle.", ["", "circle", "", "", *[""] * 8]),
        ("red drifts right", ["red", "sprite", "drifts", "right", *[""] * 8]),
        (
            "a sprite circles and a BLUE square drifts left behind a wall at night, "
            "camera pans right",
            ["", "sprite", "circles", "", "blue", "square", "drifts", "left",
             "wall", "night", "pans", "right"],
        ),
        (
            "in the snow, camera still, a pink cross",
            ["pink", "cross", "", "", "", "", "", "", "", "snow", "still", ""],
        ),
    ],
)  # fmt: skip
def test_worked_examples(text, slots):
    assert said(text) == slots


def test_sampled_prompts_survive_writing_and_reading():
    def sample(key):
        scene_key, prompt_key = jax.random.split(key)
        return prompt.sample_prompt(prompt_key, world.sample_scene(scene_key))

    sampled = np.asarray(jax.jit(jax.vmap(sample))(jax.random.split(jax.random.key(0), 300)))
    for slots in sampled:
        np.testing.assert_array_equal(prompt.tokenize(prompt.detokenize(slots)), slots)
    # Every word is said sometimes, and every kind of thing is sometimes left open.
    assert set(np.unique(sampled)) == set(range(len(prompt.WORDS)))
    generic = prompt.WORDS.index(prompt.GENERIC)
    assert 0.1 < np.mean(sampled[:, 1] == generic) < 0.3
    assert 0.2 < np.mean(sampled[:, 0] == 0) < 0.5


def test_sampled_prompts_are_true():
    @jax.jit
    @jax.vmap
    def sample(key):
        scene = world.sample_scene(key)
        return scene, prompt.sample_prompt(jax.random.fold_in(key, 1), scene)

    scenes, sampled = sample(jax.random.split(jax.random.key(1), 60))
    for index, slots in enumerate(np.asarray(sampled)):
        scene = jax.tree.map(lambda leaf, i=index: leaf[i], scenes)
        words = [prompt.WORDS[int(slot)] for slot in slots]
        for i in range(2):
            colour, shape, verb, direction = words[4 * i : 4 * i + 4]
            if int(scene.sprite_count) <= i:
                assert not any((colour, shape, verb, direction))
                continue
            assert colour in ("", paint.COLOURS[int(scene.colour[i])])
            assert shape in (prompt.GENERIC, paint.SHAPES[int(scene.shape[i])])
            motion = " ".join(filter(None, (verb, direction)))
            assert motion in ("", world.MOTIONS[int(scene.motion[i])])
        wall, place, *camera = words[8:]
        assert wall == "" or bool(scene.has_wall)
        assert place in ("", paint.PLACES[int(scene.place)])
        assert " ".join(filter(None, camera)) in ("", world.CAMERAS[int(scene.camera)])


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a crimson circle", ["'crimson'", "colours: red", "shapes: circle"]),
        ("a redd circel flies", ["did you mean 'red'", "did you mean 'circle'", "'flies'"]),
        ("", ["names no sprite"]),
        ("in the meadow", ["names no sprite"]),
        ("a circle and a square and a cross", ["more than two sprites"]),
        ("bounces", ["needs a sprite before it"]),
        ("a circle left", ["'left' needs 'drifts' or 'pans'"]),
        ("a circle bounces left", ["'left' needs 'drifts' or 'pans'"]),
        ("a circle in the meadow in the snow", ["both 'meadow' and 'snow'"]),
        ("a red blue circle", ["both 'red' and 'blue'"]),
    ],
)
def test_refusals(text, parts):
    with pytest.raises(ValueError) as error:
        prompt.tokenize(text)
    for part in parts:
        assert part in str(error.value)


def test_embedding_says_word_and_clause():
    slots = prompt.tokenize("a red circle and a red square")
    embedded = np.asarray(prompt.embed(jnp.asarray(slots)))
    config = WanConfig.tiny()
    assert embedded.shape == (config.text_len, config.text_dim)
    np.testing.assert_array_equal(embedded[slots == 0], 0)
    assert (embedded[0] != embedded[4]).sum() == 2  # the same word of another sprite
    assert set(embedded.sum(axis=1)[slots > 0]) == {2.0}


@pytest.mark.parametrize("text", prompt.EXAMPLES)
def test_examples_can_be_read(text):
    assert prompt.tokenize(text).any()
