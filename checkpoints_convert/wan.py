"""Rules for the DiT under its original Wan names."""

from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from safetensors.numpy import load_file

from checkpoints_convert.rules import Rule, apply_rules, transpose
from vidcache_jax.array_typing import Params
from vidcache_jax.config import WanConfig
from vidcache_jax.models.wan_dit import abstract_params


def patch_kernel(weight: np.ndarray) -> np.ndarray:
    """Conv3d [out, c, 1, p, q] -> kernel [(p q c), out] of one matmul per patch."""
    return rearrange(weight, "o c 1 p q -> (p q c) o")


def linear(source: str, target: str) -> list[Rule]:
    """Weight (transposed) and bias of a torch Linear."""
    return [
        Rule(rf"{source}\.weight", f"{target}/kernel", transpose),
        Rule(rf"{source}\.bias", f"{target}/bias"),
    ]


_BLOCK = r"blocks\.(?P<layer>\d+)\."

WAN_RULES: tuple[Rule, ...] = (
    Rule(r"patch_embedding\.weight", "patch_embedding/proj/kernel", patch_kernel),
    Rule(r"patch_embedding\.bias", "patch_embedding/proj/bias"),
    *linear(r"text_embedding\.(?P<i>[02])", r"text/text_embedding_\g<i>"),
    *linear(r"time_embedding\.(?P<i>[02])", r"time/time_embedding_\g<i>"),
    *linear(r"time_projection\.1", "time/time_projection_1"),
    *linear(_BLOCK + r"(?P<attn>self_attn|cross_attn)\.(?P<p>[qkvo])", r"blocks/\g<attn>/\g<p>"),
    Rule(
        _BLOCK + r"(?P<attn>self_attn|cross_attn)\.(?P<norm>norm_[qk])\.weight",
        r"blocks/\g<attn>/\g<norm>/scale",
    ),
    Rule(_BLOCK + r"norm3\.weight", "blocks/norm3/scale"),
    Rule(_BLOCK + r"norm3\.bias", "blocks/norm3/bias"),
    *linear(_BLOCK + r"ffn\.(?P<i>[02])", r"blocks/ffn_\g<i>"),
    Rule(_BLOCK + "modulation", "blocks/modulation"),
    *linear(r"head\.head", "head/head"),
    Rule(r"head\.modulation", "head/modulation"),
)


def convert_dit(
    path_or_mapping: str | Path | Mapping[str, np.ndarray],
    config: WanConfig,
    *,
    dtype=jnp.float32,
) -> Params:
    """DiT parameters from a ``.safetensors`` file or a mapping under the original Wan names.

    Raises:
      ValueError: names or shapes do not fit ``config``; all of them are listed.
    """
    if isinstance(path_or_mapping, (str, Path)):
        path_or_mapping = load_file(path_or_mapping)
    return apply_rules(WAN_RULES, path_or_mapping, abstract_params(config), dtype)
