"""Prompt embeddings on disk: computed once, whole, and never of another model or prompt."""

import jax.numpy as jnp
import numpy as np
import pytest

from vidcache_jax.testing import same_bits
from vidcache_jax.text import EmbeddingCache


class Encoder:
    """Counts what it is asked; another result for every prompt."""

    def __init__(self, dtype=np.float32):
        self.asked, self.dtype = [], dtype

    def __call__(self, prompt):
        self.asked.append(prompt)
        seed = sum(map(ord, prompt))
        return np.random.default_rng(seed).normal(size=(len(prompt), 3)).astype(self.dtype)


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_computes_once(tmp_path, dtype):
    encoder, cache = Encoder(dtype), EmbeddingCache(tmp_path / "new" / "folder", "m")
    first = cache.get("a fox", encoder)
    again = EmbeddingCache(tmp_path / "new" / "folder", "m").get("  a\nfox ", encoder)
    assert encoder.asked == ["a fox"]
    assert same_bits(first, again) and first.dtype == dtype and first.shape == (5, 3)
    assert [path.name for path in cache.folder.iterdir()] == [cache.path("a fox").name]


def test_other_prompts_and_models_are_other_entries(tmp_path):
    encoder, cache = Encoder(), EmbeddingCache(tmp_path, "m")
    caches = [(cache, "a fox"), (cache, "a box"), (EmbeddingCache(tmp_path, "m2"), "a fox")]
    for each, prompt in caches:
        each.get(prompt, encoder)
    assert len(encoder.asked) == len(list(tmp_path.iterdir())) == 3


def cut(content):
    return content[: len(content) // 2]


def flip(content):
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize("damage", [cut, flip, lambda content: b""], ids=["cut", "flip", "empty"])
def test_a_damaged_entry_is_made_anew(tmp_path, damage):
    encoder, cache = Encoder(), EmbeddingCache(tmp_path, "m")
    first, path = cache.get("a fox", encoder), cache.path("a fox")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(UserWarning, match="safetensors is damaged and made anew"):
        assert same_bits(cache.get("a fox", encoder), first)
    assert len(encoder.asked) == 2
    assert same_bits(cache.get("a fox", encoder), first) and len(encoder.asked) == 2


def test_an_entry_under_another_name_is_not_believed(tmp_path):
    encoder, cache = Encoder(), EmbeddingCache(tmp_path, "m")
    cache.get("a fox", encoder)
    cache.path("a fox").rename(cache.path("a box"))
    with pytest.warns(UserWarning, match="damaged"):
        assert same_bits(cache.get("a box", encoder), Encoder()("a box"))


def test_nothing_half_written_stays(tmp_path):
    """The last step, giving the file its name, fails: a folder has that name."""
    cache = EmbeddingCache(tmp_path, "m")
    cache.path("a fox").mkdir()
    with pytest.raises(OSError, match="cannot store prompt .* directory.* choose another folder"):
        cache.get("a fox", Encoder())
    assert list(tmp_path.iterdir()) == [cache.path("a fox")]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    cache = EmbeddingCache(tmp_path / "file", "m")
    with pytest.raises(OSError, match="cannot store prompt embeddings .*; choose another folder"):
        cache.get("a fox", Encoder())


def test_an_encoder_that_fails_leaves_nothing(tmp_path):
    def fail(prompt):
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        EmbeddingCache(tmp_path, "m").get("a fox", fail)
    assert list(tmp_path.iterdir()) == []
