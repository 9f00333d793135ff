"""The models beside the DiT: the VAE and the text encoder, by Wan's names and by diffusers'."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from checkpoints_convert.names import plain_names
from checkpoints_convert.open_source import open_source
from checkpoints_convert.opened import OpenedModel
from checkpoints_convert.rules import Rule, lazy_params, source_name
from checkpoints_convert.source import Source, Tensors, in_memory
from checkpoints_convert.umt5 import TRANSFORMERS_UMT5_RULES, UMT5_RULES
from checkpoints_convert.wan_vae import WAN_VAE_RULES
from checkpoints_convert.wan_vae_diffusers import diffusers_vae_rules
from vidcache_jax.array_typing import Params
from vidcache_jax.checkpoint import CheckpointError
from vidcache_jax.models import umt5
from vidcache_jax.models.wan_vae import WanVAE, WanVAEConfig

Config = TypeVar("Config")
PathOrMapping = str | Path | Mapping[str, np.ndarray]


def open_vae(path: str | Path) -> OpenedModel[WanVAEConfig]:
    """Opens a VAE, ``Wan2.1_VAE.pth`` or diffusers' folder; no weights are read.

    Without diffusers' ``config.json``, it is Wan 2.1's at the width of its tensors.

    Raises:
      CheckpointError: it is unreadable, or no VAE of Wan 2.1.
    """
    source = open_source(path, describes={"base_dim"})
    tensors = plain_names(source.tensors)
    wan, diffusers = "encoder.conv1.weight", "encoder.conv_in.weight"
    if not {wan, diffusers} & tensors.keys():
        raise _another_model(source, "VAE of Wan 2.1", "Wan2.1_VAE.pth, or diffusers' folder vae")
    if source.config is not None:
        config = _config(source, _vae_config)
    else:
        config = WanVAEConfig(dim=tensors[wan if wan in tensors else diffusers].shape[0])
    return OpenedModel(
        kind="vae",
        family="Wan" if wan in tensors else "diffusers",
        config=config,
        sizes=f"{len(config.dim_mult)} levels, dim {config.dim}, {config.z_dim} latent channels",
        source=source,
        tensors=tensors,
        rules=WAN_VAE_RULES if wan in tensors else diffusers_vae_rules(config),
        abstract=WanVAE(config).abstract_params(),
    )


def open_text_encoder(path: str | Path) -> OpenedModel[umt5.UMT5Config]:
    """Opens a UMT5 encoder, ``models_t5_umt5-xxl-enc-bf16.pth`` or transformers' folder.

    Raises:
      CheckpointError: it is unreadable, or no UMT5 encoder.
    """
    source = open_source(path, describes={"d_model"})
    tensors = dict(plain_names(source.tensors))
    is_wan = "token_embedding.weight" in tensors
    if not is_wan and not {"shared.weight", "encoder.embed_tokens.weight"} & tensors.keys():
        raise _another_model(
            source,
            "UMT5 text encoder",
            "models_t5_umt5-xxl-enc-bf16.pth, or diffusers' folder text_encoder",
        )
    if not is_wan and (tied := tensors.pop("encoder.embed_tokens.weight", None)) is not None:
        tensors.setdefault("shared.weight", tied)
    rules = UMT5_RULES if is_wan else TRANSFORMERS_UMT5_RULES
    config = _config(source, lambda fields: _umt5_config(rules, tensors, fields))
    return OpenedModel(
        kind="text_encoder",
        family="Wan" if is_wan else "transformers",
        config=config,
        sizes=f"{config.num_layers} layers, dim {config.dim}, {config.num_heads} heads, "
        f"{config.vocab_size} tokens",
        source=source,
        tensors=tensors,
        rules=rules,
        abstract=umt5.abstract_params(config),
    )


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


def _another_model(source: Source, what: str, usual: str) -> CheckpointError:
    return CheckpointError(
        f"{source.path} is no {what}: the first of its {len(source.tensors)} tensors are "
        f"{list(source.tensors)[:3]}; give {usual}"
    )


def _config(source: Source, of: Callable[[Mapping[str, Any]], Config]) -> Config:
    """``of`` the fields of the ``config.json``, its errors with the file's name."""
    try:
        return of(source.config or {})
    except KeyError as error:
        raise CheckpointError(
            f"the sizes of {source.path} cannot be known: neither it nor its config.json has "
            f"{error}; download both again"
        ) from error
    except (TypeError, ValueError, ArithmeticError) as error:
        raise CheckpointError(
            f"{source.path} and its config.json are of no supported model: {error}"
        ) from error


def _vae_config(fields: Mapping[str, Any]) -> WanVAEConfig:
    """From diffusers' ``config.json``."""
    for name in ("is_residual", "attn_scales", "patch_size"):
        if fields.get(name):
            raise ValueError(f"it has {name}, as Wan 2.2's, and only Wan 2.1's is supported")
    return WanVAEConfig(
        dim=fields["base_dim"],
        z_dim=fields["z_dim"],
        dim_mult=tuple(fields["dim_mult"]),
        num_res_blocks=fields["num_res_blocks"],
        temporal_downsample=tuple(fields["temperal_downsample"]),  # as diffusers spells it
        latent_mean=tuple(fields["latents_mean"]),
        latent_std=tuple(fields["latents_std"]),
    )


def _umt5_config(
    rules: Sequence[Rule], tensors: Tensors, fields: Mapping[str, Any]
) -> umt5.UMT5Config:
    """From transformers' ``config.json``; else UMT5-xxl's at its width, or sizes of the tensors."""
    if fields:
        return umt5.UMT5Config(
            vocab_size=fields["vocab_size"],
            dim=fields["d_model"],
            dim_attn=fields["num_heads"] * fields["d_kv"],
            dim_ffn=fields["d_ff"],
            num_heads=fields["num_heads"],
            num_layers=fields["num_layers"],
            num_buckets=fields["relative_attention_num_buckets"],
            max_distance=fields["relative_attention_max_distance"],
            eps=fields["layer_norm_epsilon"],
        )

    def shape(target: str, layer: int | None = 0) -> tuple[int, ...]:
        return tensors[source_name(rules, target, layer)[1]].shape

    vocab_size, dim = shape("token_embedding/embedding", None)
    if dim == umt5.UMT5Config().dim:
        return umt5.UMT5Config()
    num_buckets, num_heads = shape("blocks/pos_embedding/embedding")
    layer = re.compile(r"(?:encoder\.block|blocks)\.(\d+)\..+")
    return umt5.UMT5Config(
        vocab_size=vocab_size,
        dim=dim,
        dim_attn=shape("blocks/attn/q/kernel")[0],
        dim_ffn=shape("blocks/ffn/fc1/kernel")[0],
        num_heads=num_heads,
        num_layers=1 + max(int(match[1]) for name in tensors if (match := layer.fullmatch(name))),
        num_buckets=num_buckets,
    )
