"""TextEncoder: a prompt to the embeddings that the DiT attends to."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from vidcache_jax.array_typing import Params
from vidcache_jax.models import umt5
from vidcache_jax.text.tokenizer import PromptTokenizer

# At module level: encoders of equal settings share one compilation.
_encode = jax.jit(umt5.encode, static_argnames="config")


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class TextEncoder:
    """UMT5 with its tokenizer.

    Raises:
      ValueError: the tokenizer knows more tokens than the model.
    """

    tokenizer: PromptTokenizer
    config: umt5.UMT5Config
    params: Params

    def __post_init__(self):
        if self.tokenizer.vocab_size > self.config.vocab_size:
            raise ValueError(
                f"the tokenizer has {self.tokenizer.vocab_size} tokens, the text encoder "
                f"{self.config.vocab_size}; they belong to different models"
            )

    def __call__(self, prompt: str) -> Float[np.ndarray, "Tt text_dim"]:
        """Embeddings of the prompt's tokens alone, in the params' dtype.

        Wan pads them with zero rows to 512, which is what `wan_dit.encode_text` does.
        """
        ids, mask = self.tokenizer(prompt)
        hidden = _encode(self.params, self.config, jnp.asarray(ids)[None], jnp.asarray(mask)[None])
        return np.asarray(hidden[0])[mask]
