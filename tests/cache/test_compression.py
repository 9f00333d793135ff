import jax.numpy as jnp
import pytest

from vidcache_jax.cache import compression
from vidcache_jax.testing import assert_close


def test_the_prompt_key_is_the_mean_of_its_tokens():
    text_k = jnp.array([[[[1.0, 0.0], [3.0, 2.0], [50.0, 50.0]]]])
    assert compression.prompt_key(text_k, jnp.array([[True, True, False]])).tolist() == [[[2, 1]]]
    assert compression.prompt_key(text_k, jnp.array([[True] * 3]))[0, 0, 0] == 18
    assert compression.prompt_key(text_k, jnp.array([[False] * 3])).tolist() == [[[0, 0]]]


def test_a_tokens_score_is_its_mean_cosine_over_memory_heads():
    """Three heads, of which the second plays another role; two tokens."""
    k = jnp.array([[[[2.0, 0.0], [0.0, 1.0]], [[9.0, 9.0], [9.0, 9.0]], [[3.0, 4.0], [0.0, 0.0]]]])
    prompt = jnp.array([[[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]]])
    scores = compression.prompt_scores(k, prompt, jnp.array([True, False, True]))
    assert_close(scores, [[(1 + 0.8) / 2, 0.0]])


@pytest.mark.parametrize(
    ("score", "size", "kept"),
    [
        ([0.1, 0.9, 0.5, 0.7], 2, [1, 3]),
        ([0.1, 0.9, 0.5, 0.5], 2, [1, 2]),
        ([0.5, 0.5, 0.5, 0.5], 2, [0, 1]),
        ([-0.4, -0.1, -0.3, -0.2], 3, [1, 2, 3]),
    ],
)
def test_the_best_tokens_stay_in_their_order(score, size, kept):
    assert compression.best_tokens(jnp.array([score]), size).tolist() == [kept]
