"""Wan 2.1's causal DiT in float64 NumPy, for comparison.

Written from the description of the architecture alone: one video at a time, weights under the
original Wan names, the past as Python lists of frames, attention over concatenated tokens. It
shares no code with the package and is itself compared with the recorded references
(`tests/sampling/test_goldens.py`).
"""

import math

import numpy as np


def rope_factors(head_dim, frames, rows, columns):
    """complex128 [frames * rows * columns, head_dim / 2]: what each channel pair turns by."""
    pairs = head_dim // 2
    counts = (pairs - 2 * (pairs // 3), pairs // 3, pairs // 3)
    tokens = np.array([(f, y, x) for f in frames for y in range(rows) for x in range(columns)])
    angles = [
        tokens[:, [axis]] * np.array([10000.0 ** (-i / n) for i in range(n)])
        for axis, n in enumerate(counts)
    ]
    return np.exp(1j * np.concatenate(angles, axis=1))


class WanOracle:
    """The DiT of one state dict."""

    def __init__(self, state, config):
        self.state = {name: np.asarray(value, np.float64) for name, value in state.items()}
        self.config = config

    def forward(self, latents, timesteps, text, positions, past=None):
        """Flow and un-rotated (k, v) of every layer, for one video.

        Args:
          latents: [F, Y, X, C]; timesteps: [F]; text: [<= text_len, text_dim].
          positions: RoPE frame position of each of the F frames.
          past: per layer, a list of (position, k, v) of frames that are attended to as well,
            k and v [tokens of a frame, D].

        Returns:
          flow [F, Y, X, C], and per layer (k, v) [F, tokens of a frame, D].
        """
        c = self.config
        past = past or [[]] * c.num_layers
        (_, p, q), w = c.patch_size, self.state["patch_embedding.weight"][:, :, 0]
        frames, height, width, _ = latents.shape
        rows, columns = height // p, width // q
        patches = latents.reshape(frames, rows, p, columns, q, c.in_dim)
        x = np.einsum("fyaxbc,dcab->fyxd", patches, w) + self.state["patch_embedding.bias"]
        x = x.reshape(frames, rows * columns, c.dim)

        half = c.freq_dim // 2
        angle = np.asarray(timesteps, np.float64)[:, None] * 10000.0 ** (-np.arange(half) / half)
        e = self._linear("time_embedding.0", np.concatenate([np.cos(angle), np.sin(angle)], 1))
        e = self._linear("time_embedding.2", _silu(e))
        e0 = self._linear("time_projection.1", _silu(e)).reshape(frames, 6, c.dim)
        text = self.embed_text(text)

        own = []
        for i in range(c.num_layers):
            x, kv = self._block(f"blocks.{i}", x, e0, text, positions, past[i], (rows, columns))
            own.append(kv)

        shift, scale = np.moveaxis(self.state["head.modulation"] + e[:, None], 1, 0)
        x = self._linear("head.head", self._normal(x) * (1 + scale[:, None]) + shift[:, None])
        x = x.reshape(frames, rows, columns, p, q, c.out_dim).transpose(0, 1, 3, 2, 4, 5)
        return x.reshape(frames, height, width, c.out_dim), own

    def embed_text(self, text):
        """Zero padding to text_len, then the two layers: padding becomes ordinary tokens."""
        padded = np.zeros((self.config.text_len, self.config.text_dim))
        padded[: len(text)] = text
        return self._linear("text_embedding.2", _gelu(self._linear("text_embedding.0", padded)))

    def _block(self, name, x, e0, text, positions, past, grid):
        c = self.config
        modulation = (self.state[f"{name}.modulation"] + e0)[:, :, None]
        shift_sa, scale_sa, gate_sa, shift_ff, scale_ff, gate_ff = np.moveaxis(modulation, 1, 0)

        h = self._normal(x) * (1 + scale_sa) + shift_sa
        q, k, v = self.qkv(f"{name}.self_attn", h, h)
        own = list(zip(positions, k, v, strict=True))
        attended = self.self_attention(f"{name}.self_attn.o", q, positions, past, own, grid)
        x = x + gate_sa * attended.reshape(x.shape)

        h = x
        if c.cross_attn_norm:
            h = self._normal(x) * self.state[f"{name}.norm3.weight"]
            h = h + self.state[f"{name}.norm3.bias"]
        q, text_k, text_v = self.qkv(f"{name}.cross_attn", h, text)
        attended = self._attend(q.reshape(-1, c.dim), text_k, text_v)
        x = x + self._linear(f"{name}.cross_attn.o", attended.reshape(x.shape))

        h = self._normal(x) * (1 + scale_ff) + shift_ff
        h = self._linear(f"{name}.ffn.2", _gelu(self._linear(f"{name}.ffn.0", h)))
        return x + gate_ff * h, (k, v)

    def qkv(self, name, x, context):
        """Queries of x, keys and values of context; q and k normalised over the full width."""
        q, k = self._linear(f"{name}.q", x), self._linear(f"{name}.k", context)
        if self.config.qk_norm:
            q, k = self._rms(q, f"{name}.norm_q"), self._rms(k, f"{name}.norm_k")
        return q, k, self._linear(f"{name}.v", context)

    def self_attention(self, output, q, positions, past, own, grid):
        """Projected attention [T, D] of queries [F, tokens, D] over past and own frames."""
        return self._linear(output, self.attend_frames(q, positions, [*past, *own], grid))

    def attend_frames(self, q, positions, frames, grid):
        """Attention over frames (position, k, v)."""
        turn = lambda x, frames: self._turn(
            np.concatenate(x), rope_factors(self.config.head_dim, frames, *grid)
        )
        return self._attend(
            turn(q, positions),
            turn([k for _, k, _ in frames], [position for position, _, _ in frames]),
            np.concatenate([v for _, _, v in frames]),
        )

    def _attend(self, q, k, v):
        """[T, D] queries over [S, D] keys, head by head."""
        size, out = self.config.head_dim, []
        for h in range(self.config.num_heads):
            own = slice(h * size, (h + 1) * size)
            logits = q[:, own] @ k[:, own].T / math.sqrt(size)
            weights = np.exp(logits - logits.max(axis=1, keepdims=True))
            out.append(weights @ v[:, own] / weights.sum(axis=1, keepdims=True))
        return np.concatenate(out, axis=1)

    def _turn(self, x, factors):
        """[T, D] with adjacent channels of each head as one complex number."""
        pairs = x.reshape(len(x), self.config.num_heads, -1, 2)
        turned = (pairs[..., 0] + 1j * pairs[..., 1]) * factors[:, None]
        return np.stack([turned.real, turned.imag], axis=-1).reshape(x.shape)

    def _linear(self, name, x):
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def _normal(self, x):
        variance = np.var(x, axis=-1, keepdims=True)
        return (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(variance + self.config.eps)

    def _rms(self, x, name):
        mean_square = np.mean(x**2, axis=-1, keepdims=True)
        return x / np.sqrt(mean_square + self.config.eps) * self.state[f"{name}.weight"]


def _silu(x):
    return x / (1 + np.exp(-x))


def _gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
