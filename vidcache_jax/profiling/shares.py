"""How a head divides its attention among the past, while the model makes a chunk.

Of each query's attention, the shares that go to the video's first frame (*sink*), to the frames
after it (*middle*) and to the chunk itself (*current*), mean over the queries (Head Forcing, arXiv
2605.14487, Eq. 3). Attention over each of the three gives its softmax denominator, and the shares
are those of the denominators: no attention map is ever stored.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vidcache_jax.array_typing import FrameNumber, Heads, Latents, Params, Timesteps
from vidcache_jax.cache.policy import CachePolicy
from vidcache_jax.config import WanConfig
from vidcache_jax.models import wan_dit
from vidcache_jax.models.layers import apply
from vidcache_jax.models.wan_block import Head, WanBlock
from vidcache_jax.ops.attention import AttentionPart, attention, merge
from vidcache_jax.ops.rope import rotate

BUCKETS = ("sink", "middle", "current")


def shares_of(*parts: AttentionPart) -> Float[Array, "B N parts"]:
    """Share of each part in attention over all of them, mean over queries; they sum to 1."""
    maximum = jnp.max(jnp.stack([part.max for part in parts]), axis=0)
    mass = jnp.stack([part.denominator * jnp.exp(part.max - maximum) for part in parts], axis=-1)
    return jnp.mean(mass / jnp.sum(mass, axis=-1, keepdims=True), axis=2)


def denoise_with_shares(
    params: Params,
    config: WanConfig,
    policy: CachePolicy,
    latents: Latents,
    timestep: Timesteps,
    text_kv: wan_dit.TextKV,
    cache: wan_dit.StackedCache,
    start_frame: FrameNumber,
) -> tuple[Latents, Float[Array, "L B N 3"]]:
    """`wan_dit.denoise`, and the shares of `BUCKETS` in every head.

    The policy must keep the first frame, and at RoPE position 0, as a window with a sink does.
    """

    def layer(x, layer_inputs):
        block_params, text, layer_cache = layer_inputs

        def attend(q: Heads, k: Heads, v: Heads):
            view = policy.read(layer_cache, start_frame, latents.shape[1])
            q, k = rotate(q, view.query_position), rotate(k, view.query_position)
            past = rotate(view.k, view.position).astype(q.dtype), view.v.astype(q.dtype)
            is_first = view.position[..., 0] == 0
            sink = attention(q, *past, (view.visible & is_first)[:, :, None])
            middle = attention(q, *past, (view.visible & ~is_first)[:, :, None])
            current = attention(q, k, v)
            out = merge(merge(sink, middle), current).out
            return out, shares_of(sink, middle, current)

        return apply(WanBlock(config), block_params, x, e0, text, attend)

    x, e, e0 = wan_dit.embed_chunk(params, config, latents, timestep)
    x, shares = jax.lax.scan(layer, x, (params["blocks"], text_kv, cache))
    grid = config.token_grid(*latents.shape[2:4])
    return apply(Head(config), params["head"], x, e, grid), shares
