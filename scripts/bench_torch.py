"""The built-in model's chunk beside the same model in eager PyTorch; prints one table.

    python scripts/bench_torch.py

Both run on the CPU in float32 with a sliding window of 21 latent frames, 3 of them sink, and take
turns; the median of each counts, and the median of the ratios of neighbours. A *chunk* is all its
denoise passes and the commit pass, given the noise; no decoding. PyTorch gets what we know to be
good: cached keys are rotated once a chunk, angles and prompt keys are made once, attention is
``scaled_dot_product_attention``, and there is no gradient. Both have the same weights and noise,
and their latents must agree, or nothing is printed.
"""

import dataclasses
import os
import platform
import statistics
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
import tyro
from rich.console import Console
from rich.table import Table

import vidcache_jax as vj
from vidcache_jax.models import wan_dit
from vidcache_jax.ops.rope import axis_pairs
from vidcache_jax.sampling.rollout import Rollout
from vidcache_jax.sampling.schedule import rollout_timesteps

WINDOW, SINK = 21, 3
PROMPT = "a red circle bounces and a blue square drifts left in the meadow"
TOLERANCE = 1e-3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args:
    """What to measure."""

    rounds: int = 40
    """Chunks of each that count, after those that fill the window."""
    threads: int = os.cpu_count() or 1
    """Of PyTorch; JAX takes what there is."""


def main(args: Args) -> None:
    torch.set_num_threads(args.threads)
    model = vj.load_model("tiny")
    text_kv = wan_dit.encode_text(
        model.params, model.config, jnp.asarray(model.embed_text(PROMPT), jnp.float32)[None]
    )
    rollout = Rollout(model.config, model.rollout, vj.SlidingWindow(WINDOW, SINK))
    state = rollout.init(1, model.latent_size, jnp.float32)
    step = jax.jit(rollout.step, donate_argnums=1)
    theirs = TorchRollout(model, text_kv)
    shape = (1, model.rollout.frames_per_chunk, *model.latent_size, model.config.in_dim)
    steps = len(model.rollout.denoise_timesteps)
    random = np.random.default_rng(0)
    to_fill = -(-WINDOW // model.rollout.frames_per_chunk) + 1
    seconds, difference = [], 0.0
    for index in range(to_fill + args.rounds):
        noise = random.standard_normal((steps, *shape), np.float32)
        given = torch.from_numpy(noise)
        start = time.perf_counter()
        with torch.inference_mode():
            made = theirs.chunk(given[0], given[1:])
        middle = time.perf_counter()
        state, result = step(model.params, state, text_kv, noise[0], noise[1:])
        jax.block_until_ready(result.latents)
        if index >= to_fill:
            seconds.append((middle - start, time.perf_counter() - middle))
        # Later on rounding has grown: what is seen is made from what was seen.
        if index < to_fill:
            difference = max(difference, float(np.abs(made.numpy() - result.latents).max()))
    if not difference < TOLERANCE:
        raise RuntimeError(f"the latents differ by {difference:.2g}, so they are not one model")
    table = Table("", "PyTorch eager", "vidcache_jax", title=_machine(args.threads))
    torch_seconds, own_seconds = (statistics.median(each) for each in zip(*seconds, strict=True))
    table.add_row("chunk", f"{1e3 * torch_seconds:.1f} ms", f"{1e3 * own_seconds:.1f} ms")
    ratio = statistics.median(one / two for one, two in seconds)
    table.add_row("PyTorch / vidcache_jax", "", f"{ratio:.2f}")
    table.add_row(f"latents differ over {to_fill} chunks by", "", f"{difference:.1e}")
    Console(width=110).print(table)


class TorchRollout:
    """`Rollout.step` under a sliding window with relative RoPE, as one writes it in PyTorch."""

    def __init__(self, model: vj.VideoModel, text_kv: wan_dit.TextKV):
        self.config, self.rollout = model.config, model.rollout
        self.params = jax.tree.map(_tensor, model.params)
        self.text = [(_tensor(k), _tensor(v)) for k, v in zip(text_kv.k, text_kv.v, strict=True)]
        rows, columns = model.config.token_grid(*model.latent_size)
        self.grid, self.tokens = (rows, columns), rows * columns
        layers = range(model.config.num_layers)
        self.layers = [jax.tree.map(lambda x, i=i: x[i], self.params["blocks"]) for i in layers]
        empty = torch.zeros(1, model.config.num_heads, 0, model.config.head_dim)
        self.k, self.v = [empty for _ in layers], [empty for _ in layers]
        self.turns = self._turns(WINDOW)
        steps = [*rollout_timesteps(self.rollout), self.rollout.context_timestep]
        self.times = [self._embed_time(float(t)) for t in steps]
        self.sigmas = [float(t) / 1000 for t in steps]

    def chunk(self, noise: torch.Tensor, renoise: torch.Tensor) -> torch.Tensor:
        """The chunk's latents; the window takes it in."""
        kept = (WINDOW - self.rollout.frames_per_chunk) * self.tokens
        sink = SINK * self.tokens
        for held in (self.k, self.v):
            for i, x in enumerate(held):
                drop = max(0, x.shape[2] - kept)
                held[i] = torch.cat([x[:, :, :sink], x[:, :, sink + drop :]], 2) if drop else x
        rotated = [self._rotate(k, 0) for k in self.k]
        clean, implied = self._estimate(noise, 0, rotated)
        for i, fresh in enumerate(renoise, start=1):
            other = fresh if self.rollout.renoise == "fresh" else implied
            x = (1 - self.sigmas[i]) * clean + self.sigmas[i] * other
            clean, implied = self._estimate(x, i, rotated)
        self._pass(clean, self.times[-1], rotated, commit=True)
        return clean

    def _estimate(self, x: torch.Tensor, step: int, rotated: list) -> tuple[torch.Tensor, ...]:
        """What a denoise pass says is clean and what is noise in x."""
        sigma, flow = self.sigmas[step], self._pass(x, self.times[step], rotated)
        return x - sigma * flow, x + (1 - sigma) * flow

    def _pass(
        self, latents: torch.Tensor, time_: Any, rotated: list, commit: bool = False
    ) -> torch.Tensor:
        config, (rows, columns) = self.config, self.grid
        (e, e0), frames = time_, latents.shape[1]
        _, p, q = config.patch_size
        patches = latents.reshape(1, frames, rows, p, columns, q, -1).permute(0, 1, 2, 4, 3, 5, 6)
        x = _dense(
            patches.reshape(1, frames * self.tokens, -1), self.params["patch_embedding"]["proj"]
        )
        for i, layer in enumerate(self.layers):
            shift_sa, scale_sa, gate_sa, shift_ff, scale_ff, gate_ff = (
                layer["modulation"] + e0
            ).unbind(1)
            own = layer["self_attn"]
            h = _norm(x, config.eps) * (1 + scale_sa) + shift_sa
            query, key, value = (self._heads(own, name, h) for name in "qkv")
            first = rotated[i].shape[2]
            query, turned = self._rotate(query, first), self._rotate(key, first)
            seen = torch.cat([rotated[i], turned], 2), torch.cat([self.v[i], value], 2)
            if commit:
                self.k[i] = torch.cat([self.k[i], key], 2)
                self.v[i] = seen[1]
            x = x + gate_sa * self._attended(own, query, *seen)
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

    def _rotate(self, x: torch.Tensor, first: int) -> torch.Tensor:
        """Tokens that begin at number ``first`` of the window, as complex numbers."""
        pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * self.turns[first : first + x.shape[2]]).flatten(-2)

    def _turns(self, frames: int) -> torch.Tensor:
        """exp(i angle) of each token of a window."""
        place = np.stack(np.meshgrid(*map(np.arange, (frames, *self.grid)), indexing="ij"), -1)
        angles = [
            place.reshape(-1, 3)[:, axis, None] * 10000.0 ** -(np.arange(n) / max(n, 1))
            for axis, n in enumerate(axis_pairs(self.config.head_dim))
        ]
        return torch.from_numpy(np.exp(1j * np.concatenate(angles, -1)).astype(np.complex64))

    def _embed_time(self, timestep: float) -> tuple[torch.Tensor, torch.Tensor]:
        half, layers = self.config.freq_dim // 2, self.params["time"]
        angles = timestep * 10000.0 ** -(np.arange(half) / half)
        sinusoid = np.concatenate([np.cos(angles), np.sin(angles)]).astype(np.float32)
        e = F.silu(_dense(torch.from_numpy(sinusoid)[None], layers["time_embedding_0"]))
        e = _dense(e, layers["time_embedding_2"])
        return e, _dense(F.silu(e), layers["time_projection_1"]).unflatten(-1, (6, -1))


def _tensor(x: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(x, np.float32))


def _dense(x: torch.Tensor, layer: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return torch.matmul(x, layer["kernel"]) + layer["bias"]


def _norm(x: torch.Tensor, eps: float) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=eps)


def _machine(threads: int) -> str:
    return (
        f"{threads} threads of {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python "
        f"{platform.python_version()}, jax {jax.__version__}, torch {torch.__version__}, "
        f"{time.strftime('%Y-%m-%d')}"
    )


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
