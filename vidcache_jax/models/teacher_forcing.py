"""Training view of the causal DiT: all chunks of a clip at once, each given its clean past.

Two streams of the same frames run through the same blocks. The clean stream is what the commit
passes of a rollout would see (block-causal attention); the noisy stream is what its denoise
passes would see (its own chunk, and the clean stream's earlier chunks). With equal inputs the
flow equals `wan_dit.denoise` with a `FullCache` chunk by chunk, without a cache.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vidcache_jax.array_typing import Heads, Params
from vidcache_jax.cache.slots import chunk_frames, grid_positions
from vidcache_jax.config import WanConfig
from vidcache_jax.models.layers import apply
from vidcache_jax.models.wan_block import Head, WanBlock
from vidcache_jax.models.wan_dit import TextKV, embed_chunk
from vidcache_jax.ops.attention import attention
from vidcache_jax.ops.rope import rotate


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
    per_chunk = frames_per_chunk * grid[0] * grid[1]
    ends = range(per_chunk, positions.shape[2] + 1, per_chunk)

    # Chunk by chunk, not with one big masked attention: no logit is computed to be thrown away.
    def see_past_and(own: Callable[[int], tuple[Heads, Heads]], q: Heads) -> Heads:
        """Each chunk's queries over the keys and values `own` gives for the chunk ending there."""
        parts = [attention(q[:, :, end - per_chunk : end], *own(end)).out for end in ends]
        return jnp.concatenate(parts, axis=2)

    def layer(streams, layer_inputs):
        block_params, text = layer_inputs
        block = lambda *args: apply(WanBlock(config), block_params, *args)

        def attend_clean(q: Heads, k: Heads, v: Heads):
            q, k = rotate(q, positions), rotate(k, positions)
            return see_past_and(lambda end: (k[:, :, :end], v[:, :, :end]), q), (k, v)

        x_clean, (past_k, past_v) = block(streams[0], clean_e0, text, attend_clean)

        def attend_noisy(q: Heads, k: Heads, v: Heads):
            q, k = rotate(q, positions), rotate(k, positions)

            def past_and_own(end: int) -> tuple[Heads, Heads]:
                start = end - per_chunk
                join = lambda past, own: jnp.concatenate(
                    [tiled(past[:, :, :start]), own[:, :, start:end]], axis=2
                )
                return join(past_k, k), join(past_v, v)

            return see_past_and(past_and_own, q), None

        x_noisy, _ = block(streams[1], noisy_e0, jax.tree.map(tiled, text), attend_noisy)
        return (x_clean, x_noisy), None

    x_clean, _, clean_e0 = embed_chunk(params, config, clean, clean_timestep)
    x_noisy, e, noisy_e0 = embed_chunk(params, config, noisy, noisy_timestep)
    (_, x_noisy), _ = jax.lax.scan(layer, (x_clean, x_noisy), (params["blocks"], text_kv))
    return apply(Head(config), params["head"], x_noisy, e, grid)
