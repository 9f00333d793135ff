"""One block of the Wan DiT and the layers before and after the stack, as Linen modules.

The block does not know what its queries attend to: it hands un-rotated q, k, v to ``attend``.
Denoising, committing to a cache and training are three such functions (`wan_dit`,
`teacher_forcing`), so there is one block.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float

from vidcache_jax.array_typing import Heads, Latents, TextHeads, Timesteps, Tokens
from vidcache_jax.cache.state import OutputDelta
from vidcache_jax.config import WanConfig
from vidcache_jax.models.layers import (
    AttentionProjections,
    LayerNorm,
    modulate,
    per_token,
    timestep_sinusoid,
)
from vidcache_jax.ops.attention import attention

Attend = Callable[[Heads, Heads, Heads], tuple[Heads, Any]]
"""Un-rotated (q, k, v) of a block's tokens -> (attended values, anything to hand back)."""


class TextKV(NamedTuple):
    """The prompt as cross-attention sees it; stacked over layers it gains a leading axis L."""

    k: TextHeads
    v: TextHeads
    is_text: Bool[Array, "B Tt"]
    """False for padding, which is attended all the same, as Wan does."""


class WanBlock(nn.Module):
    """Self-attention, text cross-attention and feed-forward, modulated by time (Wan 2.1).

    x += gate_sa * SA(LN(x) (1 + scale_sa) + shift_sa)
    x += CA(norm3(x), text)
    x += gate_ff * FFN(LN(x) (1 + scale_ff) + shift_ff)

    ``output_delta`` is added to SA's output projection, for each video its own.
    """

    config: WanConfig

    def setup(self):
        c = self.config
        self.self_attn = AttentionProjections(c.dim, c.num_heads, c.qk_norm, c.eps)
        self.cross_attn = AttentionProjections(c.dim, c.num_heads, c.qk_norm, c.eps)
        self.norm1, self.norm2 = LayerNorm(c.eps), LayerNorm(c.eps)
        if c.cross_attn_norm:
            self.norm3 = LayerNorm(c.eps, affine=True)
        self.ffn_0, self.ffn_2 = nn.Dense(c.ffn_dim), nn.Dense(c.dim)
        self.modulation = self.param(
            "modulation", nn.initializers.normal(c.dim**-0.5), (1, 6, c.dim)
        )

    def __call__(
        self,
        x: Tokens,
        time: Float[Array, "B F 6 D"],
        text_kv: TextKV,
        attend: Attend,
        output_delta: OutputDelta | None = None,
    ) -> tuple[Tokens, Any]:
        modulation = time + self.modulation[:, None].astype(time.dtype)
        shift_sa, scale_sa, gate_sa, shift_ff, scale_ff, gate_ff = (
            modulation[:, :, i] for i in range(6)
        )
        num_tokens = x.shape[1]

        h = modulate(self.norm1(x), shift_sa, scale_sa)
        attended, aux = attend(self.self_attn.query(h), *self.self_attn.key_value(h))
        projected = self.self_attn.output(attended, x.dtype, output_delta)
        x = x + per_token(gate_sa, num_tokens) * projected

        h = self.norm3(x) if self.config.cross_attn_norm else x
        attended = attention(self.cross_attn.query(h), text_kv.k, text_kv.v, divided="tokens").out
        x = x + self.cross_attn.output(attended, x.dtype)

        h = modulate(self.norm2(x), shift_ff, scale_ff)
        h = self.ffn_2(nn.gelu(self.ffn_0(h), approximate=True))
        return x + per_token(gate_ff, num_tokens) * h, aux

    def with_text(self, x: Tokens, time, text: Float[Array, "B Tt D"], attend: Attend):
        """The whole block from the embedded prompt; touches every parameter, for `init`."""
        is_text = jnp.ones(text.shape[:2], bool)
        return self(x, time, TextKV(*self.text_key_value(text), is_text), attend)

    def text_key_value(self, text: Float[Array, "B Tt D"]) -> tuple[TextHeads, TextHeads]:
        """Cross-attention keys and values of the embedded prompt."""
        return self.cross_attn.key_value(text)


class PatchEmbedding(nn.Module):
    """Latents -> tokens, frame by frame and row by row (Wan's strided Conv3d as one matmul)."""

    config: WanConfig

    @nn.compact
    def __call__(self, latents: Latents) -> Tokens:
        _, rows, columns = self.config.patch_size
        patches = rearrange(latents, "b f (y p) (x q) c -> b (f y x) (p q c)", p=rows, q=columns)
        return nn.Dense(self.config.dim, name="proj")(patches)


class TimeEmbedding(nn.Module):
    """Timestep of each latent frame -> e (for the head) and its six modulations e0."""

    config: WanConfig

    @nn.compact
    def __call__(
        self, timestep: Timesteps, dtype
    ) -> tuple[Float[Array, "B F D"], Float[Array, "B F 6 D"]]:
        c = self.config
        sinusoid = timestep_sinusoid(timestep, c.freq_dim).astype(dtype)
        e = nn.Dense(c.dim, name="time_embedding_2")(
            nn.silu(nn.Dense(c.dim, name="time_embedding_0")(sinusoid))
        )
        e0 = nn.Dense(6 * c.dim, name="time_projection_1")(nn.silu(e))
        return e, rearrange(e0, "b f (six d) -> b f six d", six=6)


class TextEmbedding(nn.Module):
    """Text encoder output, zero padded to ``text_len``, -> model width."""

    config: WanConfig

    @nn.compact
    def __call__(self, text: Float[Array, "B Tt text_dim"]) -> Float[Array, "B Tt D"]:
        c = self.config
        h = nn.gelu(nn.Dense(c.dim, name="text_embedding_0")(text), approximate=True)
        return nn.Dense(c.dim, name="text_embedding_2")(h)


class Head(nn.Module):
    """Modulated LayerNorm and projection of each token to its patch of flow."""

    config: WanConfig

    @nn.compact
    def __call__(
        self, x: Tokens, e: Float[Array, "B F D"], grid: tuple[int, int]
    ) -> Float[Array, "B F Y X C"]:
        c = self.config
        _, rows, columns = c.patch_size
        modulation = self.param(
            "modulation", nn.initializers.normal(c.dim**-0.5), (1, 2, c.dim)
        ).astype(e.dtype)
        shift, scale = (e + modulation[:, i : i + 1] for i in range(2))
        h = modulate(LayerNorm(c.eps)(x), shift, scale)
        # Zero initial flow: training starts from a well-scaled loss.
        patches = nn.Dense(
            rows * columns * c.out_dim, kernel_init=nn.initializers.zeros, name="head"
        )(h)
        return rearrange(
            patches, "b (f y x) (p q c) -> b f (y p) (x q) c",
            f=e.shape[1], y=grid[0], x=grid[1], p=rows, q=columns,
        )  # fmt: skip
