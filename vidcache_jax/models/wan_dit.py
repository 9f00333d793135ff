"""The causal Wan DiT as pure functions of (params, inputs, cache).

Parameters are a plain nested dict; ``params["blocks"]`` is stacked over layers and scanned.

    encode_text   prompt -> cross-attention keys and values of every layer, once per prompt
    denoise       noisy chunk, cache (read only) -> flow
    commit        clean chunk, cache -> cache; the one pass that writes
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vidcache_jax.array_typing import FrameNumber, Heads, Latents, Params, Timesteps
from vidcache_jax.cache.policy import StackedPolicy
from vidcache_jax.cache.state import CacheSpec, Chunk, Prepared, StackedCache, Statistics
from vidcache_jax.config import WanConfig
from vidcache_jax.models.layers import apply
from vidcache_jax.models.wan_block import (
    Head,
    PatchEmbedding,
    TextEmbedding,
    TextKV,
    TimeEmbedding,
    WanBlock,
)
from vidcache_jax.sharding import ONE_DEVICE, Layout


def init_params(config: WanConfig, key: jax.Array, dtype=jnp.float32) -> Params:
    """Random parameters; the head's projection is zero, so the first flow is zero."""
    stem_keys, block_keys = jax.random.split(key), jax.random.split(key, config.num_layers)
    keys = jax.random.split(stem_keys[0], 4)
    _, rows, columns = config.patch_size
    latents = jnp.zeros((1, 1, rows, columns, config.in_dim))
    text = jnp.zeros((1, config.text_len, config.text_dim))
    tokens, e = jnp.zeros((1, 1, config.dim)), jnp.zeros((1, 1, config.dim))
    e0 = jnp.zeros((1, 1, 6, config.dim))

    def block(key):
        attend = lambda q, k, v: (v, None)
        block = WanBlock(config)
        return block.init(key, tokens, e0, tokens, attend, method=WanBlock.with_text)["params"]

    params = {
        "patch_embedding": PatchEmbedding(config).init(keys[0], latents)["params"],
        "time": TimeEmbedding(config).init(keys[1], jnp.zeros((1, 1)), jnp.float32)["params"],
        "text": TextEmbedding(config).init(keys[2], text)["params"],
        "blocks": jax.vmap(block)(block_keys),
        "head": Head(config).init(keys[3], tokens, e, (1, 1))["params"],
    }
    return jax.tree.map(lambda leaf: leaf.astype(dtype), params)


def abstract_params(config: WanConfig, dtype=jnp.float32) -> Params:
    """Shapes and dtypes of the parameters, without allocating them."""
    return jax.eval_shape(lambda key: init_params(config, key, dtype), jax.random.key(0))


def param_dtype(params: Params):
    """The dtype the model computes in: that of its parameters."""
    return params["patch_embedding"]["proj"]["kernel"].dtype


def cache_spec(
    config: WanConfig, batch: int, latent_size: tuple[int, int], frames_per_chunk: int, dtype
) -> CacheSpec:
    """What one layer of this model needs a policy to store, for latents of (Y, X)."""
    return CacheSpec(
        batch=batch,
        num_heads=config.num_heads,
        head_dim=config.head_dim,
        grid=config.token_grid(*latent_size),
        frames_per_chunk=frames_per_chunk,
        dtype=dtype,
    )


def cache_nbytes(cache: StackedCache) -> int:
    """Bytes of every buffer of a cache (arrays or their abstract shapes)."""
    return sum(math.prod(x.shape) * jnp.dtype(x.dtype).itemsize for x in jax.tree.leaves(cache))


def encode_text(params: Params, config: WanConfig, text_embeds: jax.Array) -> TextKV:
    """Cross-attention keys and values of each layer from text encoder output.

    Args:
      text_embeds: [B, <= text_len, text_dim]; zero padded to text_len here, and the padding is
        attended like any token, as Wan does. Rows of zeros count as padding.

    Raises:
      ValueError: the text is too long or of another width.
    """
    _, length, width = text_embeds.shape
    if width != config.text_dim or length > config.text_len:
        raise ValueError(
            f"text embeddings of {length} x {width} do not fit the model's "
            f"text_len={config.text_len} x text_dim={config.text_dim}"
        )
    padded = jnp.pad(text_embeds, ((0, 0), (0, config.text_len - length), (0, 0)))
    text = apply(TextEmbedding(config), params["text"], padded.astype(param_dtype(params)))

    is_text = jnp.any(padded != 0, axis=-1)

    def layer(block_params):
        k, v = apply(WanBlock(config), block_params, text, method=WanBlock.text_key_value)
        return TextKV(k, v, is_text)

    return jax.lax.map(layer, params["blocks"])


def abstract_text(config: WanConfig, batch: int, dtype=jnp.float32) -> TextKV:
    """Shapes and dtypes of what `encode_text` returns."""
    text = jax.ShapeDtypeStruct((batch, config.text_len, config.text_dim), dtype)
    encode = lambda params, text: encode_text(params, config, text)
    return jax.eval_shape(encode, abstract_params(config, dtype), text)


def output_kernels(params: Params) -> Float[Array, "L D D"]:
    """Of the output projections of self-attention, [in, out]; in = head * head_dim + channel."""
    return params["blocks"]["self_attn"]["o"]["kernel"]


def denoise(
    params: Params,
    config: WanConfig,
    policy: StackedPolicy,
    latents: Latents,
    timestep: Timesteps,
    text_kv: TextKV,
    cache: StackedCache,
    start_frame: FrameNumber,
    statistics: Statistics = None,
    layout: Layout = ONE_DEVICE,
    prepared: Prepared = None,
) -> tuple[Latents, Statistics]:
    """Flow of a noisy chunk given the past: ``flow ~ noise - clean``. Leaves the cache alone.

    Args:
      prepared: the policy's, for this chunk and cache, where several passes share it; by default
        it is made for this one.

    Returns:
      The flow, and the policy's statistics with this pass in them.
    """

    def layer(carry, layer_inputs):
        x, statistics = carry
        block_params, text, index = layer_inputs

        def attend(q: Heads, k: Heads, v: Heads):
            q, k, v = layout.queries(q), layout.to_heads(k), layout.to_heads(v)
            chunk = Chunk(q, k, v, text.k, text.is_text, start_frame)
            attended = policy.attend(prepared, index, chunk, latents.shape[1])
            out = layout.to_tokens(attended.out)
            return out, policy.observe(statistics, index, chunk, attended)

        delta, own = policy.output_delta(cache, index), layout.whole(block_params)
        return apply(WanBlock(config), own, layout.tokens(x), e0, text, attend, delta), None

    if prepared is None:
        prepared = policy.prepare(cache, start_frame, latents.shape[1])
    x, e, e0 = embed_chunk(params, config, latents, timestep)
    layers = jnp.arange(config.num_layers, dtype=jnp.int32)
    # The cache is closed over: returning it from the scan would cost a second cache.
    (x, statistics), _ = jax.lax.scan(layer, (x, statistics), (params["blocks"], text_kv, layers))
    grid = config.token_grid(*latents.shape[2:4])
    return apply(Head(config), params["head"], x, e, grid), statistics


def commit(
    params: Params,
    config: WanConfig,
    policy: StackedPolicy,
    latents: Latents,
    timestep: Timesteps,
    text_kv: TextKV,
    cache: StackedCache,
    start_frame: FrameNumber,
    statistics: Statistics = None,
    layout: Layout = ONE_DEVICE,
) -> tuple[StackedCache, Statistics]:
    """Runs the clean chunk through the model and lets the policy update every layer's cache.

    Layer l updates its cache before it attends, so that what the policy recalled or edited is
    what layer l + 1 sees (as in the references' context pass); what the policy evicts by what
    was attended to goes afterwards.

    Returns:
      The cache, and the policy's statistics with this pass in them.
    """

    def layer(carry, layer_inputs):
        x, cache, statistics = carry
        block_params, text, index = layer_inputs

        def attend(q: Heads, k: Heads, v: Heads):
            q, k, v = layout.to_heads(q), layout.to_heads(k), layout.to_heads(v)
            chunk = Chunk(q, k, v, text.k, text.is_text, start_frame)
            attended, updated = policy.update(cache, index, chunk, latents.shape[1])
            out = layout.to_tokens(attended.out)
            return out, (updated, policy.observe(statistics, index, chunk, attended))

        delta, own = policy.output_delta(cache, index), layout.whole(block_params)
        x, (cache, statistics) = apply(
            WanBlock(config), own, layout.tokens(x), e0, text, attend, delta
        )
        # In the carry, not in the scan's outputs: XLA then writes layer by layer into the donated
        # buffer instead of into a second one.
        return (x, cache, statistics), None

    x, _, e0 = embed_chunk(params, config, latents, timestep)
    layers = jnp.arange(config.num_layers, dtype=jnp.int32)
    (_, cache, statistics), _ = jax.lax.scan(
        layer, (x, cache, statistics), (params["blocks"], text_kv, layers)
    )
    return policy.settle(cache, start_frame), statistics


def embed_chunk(params: Params, config: WanConfig, latents: Latents, timestep: Timesteps):
    """(tokens, e, e0): the inputs of the layer stack, in the parameters' dtype."""
    dtype = param_dtype(params)
    x = apply(PatchEmbedding(config), params["patch_embedding"], latents.astype(dtype))
    e, e0 = apply(TimeEmbedding(config), params["time"], timestep, dtype)
    return x, e, e0


__all__ = [
    "abstract_params",
    "abstract_text",
    "cache_nbytes",
    "cache_spec",
    "commit",
    "denoise",
    "encode_text",
    "init_params",
    "output_kernels",
    "param_dtype",
]
