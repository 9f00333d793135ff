"""The UMT5 text encoder as pure functions of (params, token ids).

A T5 encoder whose layers each have their own table of relative position biases. Parameters are a
plain nested dict; ``params["blocks"]`` is stacked over layers and scanned. Follows Wan's
``wan/modules/t5.py``.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from vidcache_jax.array_typing import Params
from vidcache_jax.models.layers import RMSNorm, apply, join_heads, split_heads

TextTokens = Float[Array, "B Tt D"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class UMT5Config:
    """A UMT5 encoder; the defaults are UMT5-xxl's.

    Attributes:
      vocab_size: rows of the token embedding.
      dim, dim_attn, dim_ffn: width of the tokens, of all heads together, of the feed-forward.
      num_heads, num_layers: heads, blocks.
      num_buckets: of relative positions, half of them for tokens behind, half ahead.
      max_distance: in tokens; from here on all distances share the last bucket.
      eps: of every norm.

    Raises:
      ValueError: a size is not positive, or sizes do not divide as the architecture needs.
    """

    vocab_size: int = 256384
    dim: int = 4096
    dim_attn: int = 4096
    dim_ffn: int = 10240
    num_heads: int = 64
    num_layers: int = 24
    num_buckets: int = 32
    max_distance: int = 128
    eps: float = 1e-6

    def __post_init__(self):
        for name in ("vocab_size", "dim", "dim_attn", "dim_ffn", "num_heads", "num_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be positive")
        if self.dim_attn % self.num_heads:
            raise ValueError(
                f"dim_attn={self.dim_attn} must split into num_heads={self.num_heads} heads"
            )
        if self.num_buckets < 4 or self.num_buckets % 4:
            raise ValueError(f"num_buckets={self.num_buckets} must be a multiple of 4")
        if self.max_distance <= self.num_buckets // 4:
            raise ValueError(
                f"max_distance={self.max_distance} must exceed a quarter of "
                f"num_buckets={self.num_buckets}, the distances with a bucket of their own"
            )


def relative_buckets(config: UMT5Config, num_tokens: int) -> Int[np.ndarray, "Tt Tt"]:
    """Bucket of key j as seen from query i, at [i, j].

    With n = num_buckets / 2 buckets on either side (those of keys ahead come second) and distance
    d = |j - i|: bucket d below n / 2, and from there on
    ``n/2 + floor(n/2 log(d / (n/2)) / log(max_distance / (n/2)))``, at most n - 1.

    Example: num_buckets=8, max_distance=4, 4 tokens ->
        [[0, 5, 6, 7],
         [1, 0, 5, 6],
         [2, 1, 0, 5],
         [3, 2, 1, 0]]
    """
    position = np.arange(num_tokens)
    offset = position[None, :] - position[:, None]
    side = config.num_buckets // 2
    exact, distance = side // 2, np.abs(offset)
    # In float32, as the references: a distance at the edge of two buckets falls on the same side.
    ratio = np.log(np.maximum(distance, exact).astype(np.float32) / np.float32(exact))
    ratio = ratio / np.float32(math.log(config.max_distance / exact))
    far = exact + (ratio * np.float32(side - exact)).astype(np.int32)
    bucket = np.where(distance < exact, distance, np.minimum(far, side - 1))
    return (bucket + side * (offset > 0)).astype(np.int32)


class SelfAttention(nn.Module):
    """``softmax(q k^T + bias) v`` with no 1 / sqrt(H), logits and softmax in float32."""

    config: UMT5Config

    @nn.compact
    def __call__(
        self, x: TextTokens, bias: Float[Array, "N Tt Tt"], mask: Bool[Array, "B Tt"]
    ) -> TextTokens:
        c = self.config
        linear = lambda name, width: nn.Dense(width, use_bias=False, name=name)
        q, k, v = (split_heads(linear(name, c.dim_attn)(x), c.num_heads) for name in "qkv")
        logits = jnp.einsum("bnth,bnsh->bnts", q, k, preferred_element_type=jnp.float32)
        logits = logits + bias.astype(jnp.float32)[None]
        # finfo.min, not -inf: a text without tokens must give numbers, which are zeroed later.
        logits = jnp.where(mask[:, None, None, :], logits, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(logits, axis=-1).astype(x.dtype)
        return linear("o", c.dim)(join_heads(jnp.einsum("bnts,bnsh->bnth", weights, v)))


class FeedForward(nn.Module):
    """``fc2(fc1(x) * gelu(gate(x)))``, the tanh form of GELU."""

    config: UMT5Config

    @nn.compact
    def __call__(self, x: TextTokens) -> TextTokens:
        c = self.config
        linear = lambda name, width: nn.Dense(width, use_bias=False, name=name)
        gate = nn.gelu(linear("gate", c.dim_ffn)(x), approximate=True)
        return linear("fc2", c.dim)(linear("fc1", c.dim_ffn)(x) * gate)


class Block(nn.Module):
    """Attention and feed-forward, each on the normalised tokens and added to them."""

    config: UMT5Config

    @nn.compact
    def __call__(
        self, x: TextTokens, buckets: Int[Array, "Tt Tt"], mask: Bool[Array, "B Tt"]
    ) -> TextTokens:
        c = self.config
        table = nn.Embed(c.num_buckets, c.num_heads, name="pos_embedding")
        bias = rearrange(table(buckets), "t s n -> n t s")
        x = x + SelfAttention(c, name="attn")(RMSNorm(c.eps, name="norm1")(x), bias, mask)
        return x + FeedForward(c, name="ffn")(RMSNorm(c.eps, name="norm2")(x))


def init_params(config: UMT5Config, key: jax.Array, dtype=jnp.float32) -> Params:
    """Random parameters."""
    embedding_key, norm_key, blocks_key = jax.random.split(key, 3)
    x, ids = jnp.zeros((1, 1, config.dim)), jnp.zeros((1, 1), jnp.int32)
    mask = jnp.ones((1, 1), bool)
    block = lambda key: Block(config).init(key, x, ids, mask)["params"]
    params = {
        "token_embedding": _embedding(config).init(embedding_key, ids)["params"],
        "blocks": jax.vmap(block)(jax.random.split(blocks_key, config.num_layers)),
        "norm": RMSNorm(config.eps).init(norm_key, x)["params"],
    }
    return jax.tree.map(lambda leaf: leaf.astype(dtype), params)


def abstract_params(config: UMT5Config, dtype=jnp.float32) -> Params:
    """Shapes and dtypes of the parameters, without allocating them."""
    return jax.eval_shape(lambda key: init_params(config, key, dtype), jax.random.key(0))


def encode(
    params: Params, config: UMT5Config, ids: Int[Array, "B Tt"], mask: Bool[Array, "B Tt"]
) -> TextTokens:
    """Hidden states of the tokens, in the parameters' dtype.

    Args:
      ids: token ids below ``vocab_size``, padded to one length.
      mask: which tokens are text; the others are not attended.

    Returns:
      ``[B, Tt, dim]``, rows of padding zero, as Wan's DiT expects them.
    """
    x = apply(_embedding(config), params["token_embedding"], ids)
    buckets = jnp.asarray(relative_buckets(config, ids.shape[1]))

    def layer(x, block_params):
        return apply(Block(config), block_params, x, buckets, mask), None

    x, _ = jax.lax.scan(layer, x, params["blocks"])
    x = apply(RMSNorm(config.eps), params["norm"], x)
    return jnp.where(mask[..., None], x, jnp.zeros((), x.dtype))


def _embedding(config: UMT5Config) -> nn.Embed:
    return nn.Embed(config.vocab_size, config.dim)
