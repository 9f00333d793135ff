"""Small random weights under the original Wan names."""

import math

import numpy as np


def random_state(config, seed=0):
    """A state dict under the original Wan names; activations stay of order one."""
    rng = np.random.default_rng(seed)
    d, (_, p, q) = config.dim, config.patch_size
    state = {}

    def linear(name, wide, out, shape=None):
        state[f"{name}.weight"] = rng.normal(size=shape or (out, wide)) / math.sqrt(wide)
        state[f"{name}.bias"] = 0.1 * rng.normal(size=out)

    linear("patch_embedding", config.in_dim * p * q, d, (d, config.in_dim, 1, p, q))
    linear("text_embedding.0", config.text_dim, d)
    linear("text_embedding.2", d, d)
    linear("time_embedding.0", config.freq_dim, d)
    linear("time_embedding.2", d, d)
    linear("time_projection.1", d, 6 * d)
    for i in range(config.num_layers):
        for attn in ("self_attn", "cross_attn"):
            for name in "qkvo":
                linear(f"blocks.{i}.{attn}.{name}", d, d)
            for name in ("norm_q", "norm_k") if config.qk_norm else ():
                state[f"blocks.{i}.{attn}.{name}.weight"] = 1 + 0.3 * rng.normal(size=d)
        if config.cross_attn_norm:
            state[f"blocks.{i}.norm3.weight"] = 1 + 0.3 * rng.normal(size=d)
            state[f"blocks.{i}.norm3.bias"] = 0.3 * rng.normal(size=d)
        linear(f"blocks.{i}.ffn.0", d, config.ffn_dim)
        linear(f"blocks.{i}.ffn.2", config.ffn_dim, d)
        state[f"blocks.{i}.modulation"] = 0.5 * rng.normal(size=(1, 6, d))
    linear("head.head", d, p * q * config.out_dim)
    state["head.modulation"] = 0.5 * rng.normal(size=(1, 2, d))
    return {name: value.astype(np.float32) for name, value in state.items()}
