"""The models beside the DiT, the VAE and the text encoder, from their original Wan files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from checkpoints_convert.names import plain_names
from checkpoints_convert.open_source import open_source
from checkpoints_convert.rules import Rule, lazy_params
from checkpoints_convert.source import in_memory
from checkpoints_convert.umt5 import UMT5_RULES
from checkpoints_convert.wan_vae import WAN_VAE_RULES
from vidcache_jax.array_typing import Params
from vidcache_jax.models import umt5
from vidcache_jax.models.wan_vae import WanVAE, WanVAEConfig

PathOrMapping = str | Path | Mapping[str, np.ndarray]


def convert_vae(
    path_or_mapping: PathOrMapping,
    config: WanVAEConfig = WanVAEConfig(),  # noqa: B008
    *,
    dtype: Any = jnp.float32,
) -> Params:
    """Parameters of `WanVAE` in memory, from ``Wan2.1_VAE.pth`` or a mapping of its tensors.

    Raises:
      CheckpointError: the file cannot be read, or names or shapes do not fit ``config``; all of
        them are listed.
    """
    return _convert(path_or_mapping, WAN_VAE_RULES, WanVAE(config).abstract_params(), dtype)


def convert_umt5(
    path_or_mapping: PathOrMapping,
    config: umt5.UMT5Config = umt5.UMT5Config(),  # noqa: B008
    *,
    dtype: Any = jnp.bfloat16,
) -> Params:
    """Parameters of `umt5.encode` in memory, from ``models_t5_umt5-xxl-enc-bf16.pth`` or a mapping.

    Raises:
      CheckpointError: as `convert_vae`.
    """
    return _convert(path_or_mapping, UMT5_RULES, umt5.abstract_params(config), dtype)


def _convert(source: PathOrMapping, rules: Sequence[Rule], abstract: Params, dtype: Any) -> Params:
    tensors = in_memory(source) if isinstance(source, Mapping) else open_source(source).tensors
    params = lazy_params(rules, plain_names(tensors), abstract, jnp.dtype(dtype))
    return jax.tree.map(lambda leaf: leaf.materialise(), params)
