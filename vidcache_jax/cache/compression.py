"""Two frames become one: the tokens that the prompt is about stay (Head Forcing, section 1.4).

    r_t = mean over the layer's memory heads of cos(k_t, k_prompt)       t = 1 ... 2P
    S   = the P tokens of highest r, in the order they were in

Frames and keys are those of one layer. The paper does not say what ``k_prompt`` is; here it is
the mean of the layer's cross-attention keys, each head with the key of the same number, as in
MemFlow's ``compress_kv_bank``. Unlike MemFlow, padding may be left out of the mean, and keys may
be brought to unit length before it.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vidcache_jax.cache.novelty import unit


def prompt_key(
    text_k: Float[Array, "B N Tt H"], counted: Bool[Array, "B Tt"]
) -> Float[Array, "B N H"]:
    """Mean key of the counted text tokens, float32; 0 if there are none."""
    counted = counted[:, None, :, None]
    total = jnp.sum(jnp.where(counted, text_k.astype(jnp.float32), 0.0), axis=2)
    return total / jnp.maximum(jnp.sum(counted, axis=2), 1).astype(jnp.float32)


def prompt_scores(
    k: Float[Array, "B N S H"], prompt: Float[Array, "B N H"], is_memory: Bool[Array, " N"]
) -> Float[Array, "B S"]:
    """r of every token."""
    cosine = jnp.einsum(
        "bnsh,bnh->bns", unit(k.astype(jnp.float32)), unit(prompt),
        precision=jax.lax.Precision.HIGHEST,
    )  # fmt: skip
    counted = jnp.where(is_memory[None, :, None], cosine, 0.0)
    return jnp.sum(counted, axis=1) / jnp.maximum(jnp.sum(is_memory), 1).astype(jnp.float32)


def best_tokens(score: Float[Array, "B S"], size: int) -> Int[Array, "B size"]:
    """The ``size`` tokens of highest score, ascending; of equals, the first.

    Example: scores 0.1, 0.9, 0.5, 0.5 and size 2 give tokens 1, 2.
    """
    ranked = jnp.argsort(-score, axis=-1, stable=True)
    return jnp.sort(ranked[:, :size], axis=-1).astype(jnp.int32)
