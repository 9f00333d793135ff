"""A rollout under a sliding window as one writes it in PyTorch, in several ways to compare with."""

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import vidcache_jax as vj
from vidcache_jax.models import wan_dit
from vidcache_jax.ops.rope import axis_pairs
from vidcache_jax.sampling.schedule import rollout_timesteps


@dataclasses.dataclass(frozen=True)
class Variant:
    """How PyTorch computes it.

    Attributes:
      turns_each_pass: all cached keys are rotated in every pass, as complex128, and the chunk's
        with them: the operations of the public code of policies that keep keys un-rotated.
        Otherwise cached keys are rotated once a chunk, as complex64.
      cudnn: attention by cuDNN alone, which PyTorch need not choose.
      compiled: ``torch.compile(mode="max-autotune-no-cudagraphs")`` of a pass.
    """

    turns_each_pass: bool = False
    cudnn: bool = False
    compiled: bool = False


VARIANTS: Mapping[str, Variant] = {
    "reference": Variant(turns_each_pass=True),
    "eager": Variant(),
    "cudnn": Variant(cudnn=True),
    "compiled": Variant(cudnn=True, compiled=True),
}


class TorchRollout:
    """`Rollout.step` of one video under a `SlidingWindow` with relative RoPE.

    Every layer has buffers of the window's size, whose last tokens in use are the chunk's own: a
    pass writes those in place and attends to a view.

    Args:
      params, text_kv: of the JAX model, copied.
      window, sink: latent frames.
    """

    def __init__(
        self, model: vj.VideoModel, text_kv: wan_dit.TextKV, window: int, sink: int,
        variant: Variant, device: str, dtype: torch.dtype,
    ):  # fmt: skip
        self.config, self.rollout, self.variant = model.config, model.rollout, variant
        self.device, self.dtype = device, dtype
        copied = lambda x: torch.from_numpy(np.array(x, np.float32)).to(device, dtype)
        self.params = jax.tree.map(copied, model.params)
        layers = range(model.config.num_layers)
        self.text = [tuple(copied(x[i]) for x in (text_kv.k, text_kv.v)) for i in layers]
        self.layers = [jax.tree.map(lambda x, i=i: x[i], self.params["blocks"]) for i in layers]
        self.grid = model.config.token_grid(*model.latent_size)
        self.tokens = self.grid[0] * self.grid[1]
        self.own = self.rollout.frames_per_chunk * self.tokens
        self.sink, self.held = sink * self.tokens, 0
        shape = (1, model.config.num_heads, window * self.tokens, model.config.head_dim)
        empty = lambda: [torch.zeros(shape, device=device, dtype=dtype) for _ in layers]
        self.k, self.turned, self.v = empty(), empty(), empty()
        self.turns = self._turns(window)
        steps = [*rollout_timesteps(self.rollout), self.rollout.context_timestep]
        self.times = [self._embed_time(float(t)) for t in steps]
        self.sigmas = [float(t) / 1000 for t in steps]
        self.compiled_pass = self._pass
        if variant.compiled:
            mode = "max-autotune-no-cudagraphs"
            self.compiled_pass = torch.compile(self._pass, mode=mode, dynamic=False)

    def chunk(self, noise: np.ndarray, renoise: np.ndarray) -> torch.Tensor:
        """The chunk's latents, float32; the window takes it in."""
        attention = contextlib.nullcontext()
        if self.variant.cudnn:
            attention = sdpa_kernel(SDPBackend.CUDNN_ATTENTION)
        with torch.inference_mode(), attention:
            return self._chunk(*(torch.from_numpy(x).to(self.device) for x in (noise, renoise)))

    def _chunk(self, noise: torch.Tensor, renoise: torch.Tensor) -> torch.Tensor:
        total = self.k[0].shape[2]
        if self.held + self.own > total:
            for x in (each for held in (self.k, self.v) for each in held):
                x[:, :, self.sink : -self.own] = x[:, :, self.sink + self.own :].clone()
            self.held = total - self.own
        past = self.held
        if not self.variant.turns_each_pass:
            self._turn_past(past)
        clean, implied = self._estimate(noise, 0, past)
        for i, fresh in enumerate(renoise, start=1):
            other = fresh if self.rollout.renoise == "fresh" else implied
            x = (1 - self.sigmas[i]) * clean + self.sigmas[i] * other
            clean, implied = self._estimate(x, i, past)
        self._run(clean, len(self.times) - 1, past)
        self.held += self.own
        return clean

    def _estimate(self, x: torch.Tensor, step: int, past: int) -> tuple[torch.Tensor, ...]:
        """What a denoise pass says is clean and what is noise in x."""
        sigma, flow = self.sigmas[step], self._run(x, step, past).float()
        return x - sigma * flow, x + (1 - sigma) * flow

    def _run(self, latents: torch.Tensor, step: int, past: int) -> torch.Tensor:
        # While the window fills, every chunk has a shape of its own.
        is_full = past + self.own == self.k[0].shape[2]
        run = self.compiled_pass if is_full else self._pass
        return run(latents.to(self.dtype), self.times[step], past)

    def _pass(
        self, latents: torch.Tensor, time: tuple[torch.Tensor, torch.Tensor], past: int
    ) -> torch.Tensor:
        config, (rows, columns) = self.config, self.grid
        (e, e0), frames = time, latents.shape[1]
        _, p, q = config.patch_size
        if self.variant.turns_each_pass:
            self._turn_past(past)
        patches = latents.reshape(1, frames, rows, p, columns, q, -1).permute(0, 1, 2, 4, 3, 5, 6)
        x = _dense(patches.reshape(1, self.own, -1), self.params["patch_embedding"]["proj"])
        for i, layer in enumerate(self.layers):
            shift_sa, scale_sa, gate_sa, shift_ff, scale_ff, gate_ff = (
                layer["modulation"] + e0
            ).unbind(1)
            h = _norm(x, config.eps) * (1 + scale_sa) + shift_sa
            query, key, value = (self._heads(layer["self_attn"], name, h) for name in "qkv")
            end = past + self.own
            self.k[i][:, :, past:end], self.v[i][:, :, past:end] = key, value
            self.turned[i][:, :, past:end] = self._turn(key, past)
            seen = self.turned[i][:, :, :end], self.v[i][:, :, :end]
            x = x + gate_sa * self._attended(layer["self_attn"], self._turn(query, past), *seen)
            other = layer["cross_attn"]
            h = _norm(x, config.eps)
            if config.cross_attn_norm:
                h = h * layer["norm3"]["scale"] + layer["norm3"]["bias"]
            x = x + self._attended(other, self._heads(other, "q", h), *self.text[i])
            h = _norm(x, config.eps) * (1 + scale_ff) + shift_ff
            h = F.gelu(_dense(h, layer["ffn_0"]), approximate="tanh")
            x = x + gate_ff * _dense(h, layer["ffn_2"])
        head = self.params["head"]
        shift, scale = (head["modulation"] + e[:, None]).unbind(1)
        out = _dense(_norm(x, config.eps) * (1 + scale) + shift, head["head"])
        out = out.reshape(1, frames, rows, columns, p, q, -1).permute(0, 1, 2, 4, 3, 5, 6)
        return out.reshape(latents.shape)

    def _turn_past(self, past: int) -> None:
        for key, turned in zip(self.k, self.turned, strict=True):
            turned[:, :, :past] = self._turn(key[:, :, :past], 0)

    def _turn(self, x: torch.Tensor, first: int) -> torch.Tensor:
        """RoPE of tokens that begin at number ``first`` of the window, as complex numbers."""
        precision = torch.float64 if self.variant.turns_each_pass else torch.float32
        pairs = torch.view_as_complex(x.to(precision).unflatten(-1, (-1, 2)).contiguous())
        turned = torch.view_as_real(pairs * self.turns[first : first + x.shape[2]])
        return turned.flatten(-2).to(x.dtype)

    def _turns(self, frames: int) -> torch.Tensor:
        """exp(i angle) of each token of a window."""
        place = np.stack(np.meshgrid(*map(np.arange, (frames, *self.grid)), indexing="ij"), -1)
        angles = [
            place.reshape(-1, 3)[:, axis, None] * 10000.0 ** -(np.arange(n) / max(n, 1))
            for axis, n in enumerate(axis_pairs(self.config.head_dim))
        ]
        turns = torch.from_numpy(np.exp(1j * np.concatenate(angles, -1))).to(self.device)
        return turns if self.variant.turns_each_pass else turns.to(torch.complex64)

    def _heads(self, layer: Mapping[str, Any], name: str, x: torch.Tensor) -> torch.Tensor:
        out = _dense(x, layer[name])
        if self.config.qk_norm and name != "v":
            out = F.rms_norm(out, out.shape[-1:], layer[f"norm_{name}"]["scale"], self.config.eps)
        return out.unflatten(-1, (self.config.num_heads, -1)).transpose(1, 2)

    def _attended(
        self, layer: Mapping[str, Any], q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> torch.Tensor:
        out = F.scaled_dot_product_attention(q, k, v)
        return _dense(out.transpose(1, 2).flatten(2), layer["o"])

    def _embed_time(self, timestep: float) -> tuple[torch.Tensor, torch.Tensor]:
        half, layers = self.config.freq_dim // 2, self.params["time"]
        angles = timestep * 10000.0 ** -(np.arange(half) / half)
        sinusoid = torch.from_numpy(np.concatenate([np.cos(angles), np.sin(angles)]))
        e = F.silu(_dense(sinusoid[None].to(self.device, self.dtype), layers["time_embedding_0"]))
        e = _dense(e, layers["time_embedding_2"])
        return e, _dense(F.silu(e), layers["time_projection_1"]).unflatten(-1, (6, -1))


def _dense(x: torch.Tensor, layer: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return torch.matmul(x, layer["kernel"]) + layer["bias"]


def _norm(x: torch.Tensor, eps: float) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=eps)
