"""Training view of the causal DiT: all chunks of a clip at once, each given its clean past.

Two streams of the same frames run through the same blocks. The clean stream is what the commit
passes of a rollout would see (block-causal attention); the noisy stream is what its denoise
passes would see (its own chunk, and the clean stream's earlier chunks). With equal inputs the
flow equals `wan_dit.denoise` with a `FullCache` chunk by chunk, without a cache.
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from vidcache_jax.array_typing import Heads, Params
from vidcache_jax.cache.slots import chunk_frames, grid_positions
from vidcache_jax.config import WanConfig
from vidcache_jax.models.layers import apply
from vidcache_jax.models.rope import rotate
from vidcache_jax.models.wan_block import Head, WanBlock
from vidcache_jax.models.wan_dit import TextKV, embed_chunk
from vidcache_jax.ops.attention import AttentionPart, attention, merge


def teacher_forcing(
    params: Params,
    config: WanConfig,
    clean: Float[Array, "B F Y X C"],
    clean_timestep: Float[Array, "B F"],
    noisy: Float[Array, "RB F Y X C"],
    noisy_timestep: Float[Array, "RB F"],
    text_kv: TextKV,
    frames_per_chunk: int,
) -> Float[Array, "RB F Y X c"]:
    """Flow of every noisy chunk given the clean chunks before it.

    Args:
      clean: [B, F, Y, X, C], F a multiple of frames_per_chunk.
      noisy: the same frames noised, once or R times over: [R B, F, Y, X, C]. The clean stream,
        half of the work, is then shared by R noise levels.
      clean_timestep: what the cache is told of its context, normally context_timestep.

    Raises:
      ValueError: the clip does not split into chunks, or noisy is no multiple of clean.
    """
    batch, num_frames, *latent_size = clean.shape[:4]
    if num_frames % frames_per_chunk:
        raise ValueError(f"{num_frames} frames do not split into chunks of {frames_per_chunk}")
    copies, left_over = divmod(noisy.shape[0], batch)
    if left_over or not copies:
        raise ValueError(f"{noisy.shape[0]} noisy clips are no multiple of {batch} clean ones")
    tiled = lambda x: jnp.tile(x, (copies, *(1,) * (x.ndim - 1)))
    grid = config.token_grid(*latent_size)
    positions = grid_positions(chunk_frames(jnp.int32(0), num_frames, 1), grid)
    chunk = positions[0, 0, :, 0] // frames_per_chunk
    earlier = (chunk[:, None] > chunk[None])[None, None]
    not_later = (chunk[:, None] >= chunk[None])[None, None]
    num_chunks = num_frames // frames_per_chunk

    def own_chunk(q: Heads, k: Heads, v: Heads) -> AttentionPart:
        split = lambda x: rearrange(x, "b n (c t) h -> (b c) n t h", c=num_chunks)
        part = attention(split(q), split(k), split(v))
        return AttentionPart(
            rearrange(part.out, "(b c) n t h -> b n (c t) h", c=num_chunks),
            rearrange(part.max, "(b c) n t -> b n (c t)", c=num_chunks),
            rearrange(part.denominator, "(b c) n t -> b n (c t)", c=num_chunks),
        )

    def layer(streams, layer_inputs):
        block_params, text = layer_inputs
        block = lambda *args: apply(WanBlock(config), block_params, *args)

        def attend_clean(q: Heads, k: Heads, v: Heads):
            k = rotate(k, positions)
            return attention(rotate(q, positions), k, v, not_later).out, (k, v)

        x_clean, (past_k, past_v) = block(streams[0], clean_e0, text, attend_clean)

        def attend_noisy(q: Heads, k: Heads, v: Heads):
            q, k = rotate(q, positions), rotate(k, positions)
            past = attention(q, tiled(past_k), tiled(past_v), earlier)
            return merge(past, own_chunk(q, k, v)).out, None

        x_noisy, _ = block(streams[1], noisy_e0, jax.tree.map(tiled, text), attend_noisy)
        return (x_clean, x_noisy), None

    x_clean, _, clean_e0 = embed_chunk(params, config, clean, clean_timestep)
    x_noisy, e, noisy_e0 = embed_chunk(params, config, noisy, noisy_timestep)
    (_, x_noisy), _ = jax.lax.scan(layer, (x_clean, x_noisy), (params["blocks"], text_kv))
    return apply(Head(config), params["head"], x_noisy, e, grid)
