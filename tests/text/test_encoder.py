"""From a prompt to what the DiT gets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.cases import QUICK
from tests.text.small_tokenizer import small_tokenizer
from vidcache_jax.models import umt5
from vidcache_jax.testing import assert_close
from vidcache_jax.text import PromptTokenizer, TextEncoder

CONFIG = umt5.UMT5Config(vocab_size=128, dim=8, dim_attn=8, dim_ffn=8, num_heads=2, num_layers=1)


@pytest.fixture(scope="module")
def encoder():
    init = jax.jit(umt5.init_params, static_argnums=0, compiler_options=QUICK)
    params = init(CONFIG, jax.random.key(0))
    return TextEncoder(
        tokenizer=PromptTokenizer(small_tokenizer(), 16), config=CONFIG, params=params
    )


def test_rows_of_the_text_alone(encoder):
    ids, mask = encoder.tokenizer("a red fox")
    embeddings = encoder("  a red  fox")
    assert embeddings.shape == (mask.sum(), 8) and 1 < mask.sum() < 16
    short = jnp.asarray(ids[mask])[None], jnp.asarray(mask[mask])[None]
    assert_close(embeddings, umt5.encode(encoder.params, CONFIG, *short)[0])
    assert not np.allclose(embeddings, encoder("a red box")[: len(embeddings)])


def test_an_empty_prompt_is_its_end(encoder):
    assert encoder("").shape == (1, 8)


def test_a_tokenizer_of_another_model(encoder):
    config = umt5.UMT5Config(vocab_size=50, dim=8, dim_attn=8, dim_ffn=8, num_heads=2, num_layers=1)
    with pytest.raises(ValueError, match=r"tokenizer has \d+ tokens, the text encoder 50"):
        TextEncoder(tokenizer=encoder.tokenizer, config=config, params=encoder.params)
