"""Converted checkpoints back under PyTorch names, as ``.safetensors`` with a ``config.json``."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from checkpoints_convert.convert import Stage, silent
from checkpoints_convert.families import DIFFUSERS, Family
from checkpoints_convert.rules import layers_of, source_name
from checkpoints_convert.writer import check_space, new_folder
from vidcache_jax.array_typing import Params
from vidcache_jax.checkpoint import read_info
from vidcache_jax.checkpoint.paths import by_path
from vidcache_jax.checkpoint.reader import dit_config, open_arrays, read_part
from vidcache_jax.config import WanConfig

_STEM = "diffusion_pytorch_model"
_SHARD_BYTES = 2 << 30


def invert_dit(params: Params, config: WanConfig, family: Family) -> dict[str, np.ndarray]:
    """Parameters in memory under a family's names: the inverse of `convert_dit`.

    Raises:
      CheckpointError: the parameters are of another model.
    """
    leaves = {name: np.asarray(leaf) for name, leaf in by_path(params).items()}
    rules = family.rules(config.patch_size)
    state = {}
    for path, value in leaves.items():
        for layer in layers_of(path, value.shape):
            rule, name = source_name(rules, path, layer)
            state[name] = rule.inverse(value if layer is None else value[layer])
    return state


def export(
    folder: str | Path,
    out: str | Path,
    family: Family,
    *,
    stage: Stage = silent,
    shard_bytes: int = _SHARD_BYTES,
) -> None:
    """Writes a converted checkpoint to a new folder that Wan's or diffusers' code can load.

    Tensors have the bits of the source they were converted from, if the dtype was kept. At most
    ``shard_bytes`` are in memory, twice.

    Raises:
      CheckpointError: the folder is no converted DiT, or ``out`` exists or cannot be written.
    """
    config = dit_config(folder, read_info(folder))
    arrays = open_arrays(folder)
    nbytes = sum(array.size * array.dtype.numpy_dtype.itemsize for array in arrays.values())
    out = Path(os.path.abspath(out))
    check_space(out, nbytes)
    progress = stage("exporting", nbytes)
    rules = family.rules(config.patch_size)

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        for path, array in arrays.items():
            for layer in layers_of(path, array.shape):
                rule, name = source_name(rules, path, layer)
                part = read_part(folder, path, array, ... if layer is None else layer)
                progress(part.nbytes)
                yield name, np.ascontiguousarray(rule.inverse(part))

    with new_folder(out) as partial:
        shards: list[set[str]] = []
        shard: dict[str, np.ndarray] = {}
        size = 0

        def flush() -> None:
            save_file(shard, partial / f"{len(shards)}", metadata={"format": "pt"})
            shards.append(set(shard))

        for name, value in tensors():
            if shard and size + value.nbytes > shard_bytes:
                flush()
                shard, size = {}, 0
            shard[name], size = value, size + value.nbytes
        flush()
        # The names say how many there are.
        last = len(shards)
        names = [f"{_STEM}-{i + 1:05}-of-{last:05}.safetensors" for i in range(last)]
        names = names if last > 1 else [f"{_STEM}.safetensors"]
        for i, name in enumerate(names):
            (partial / f"{i}").rename(partial / name)
        if last > 1:
            weight_map = {
                tensor: name for name, own in zip(names, shards, strict=True) for tensor in own
            }
            index = {"metadata": {"total_size": nbytes}, "weight_map": weight_map}
            (partial / f"{_STEM}.safetensors.index.json").write_text(json.dumps(index, indent=2))
        fields = _diffusers_fields(config) if family is DIFFUSERS else _wan_fields(config)
        (partial / "config.json").write_text(json.dumps(fields, indent=2))


def _wan_fields(config: WanConfig) -> dict[str, Any]:
    names = ("model_type", "patch_size", "text_len", "in_dim", "dim", "ffn_dim", "freq_dim",
             "text_dim", "out_dim", "num_heads", "num_layers", "window_size", "qk_norm",
             "cross_attn_norm", "eps")  # fmt: skip
    return {"_class_name": "WanModel", **{name: getattr(config, name) for name in names}}


def _diffusers_fields(config: WanConfig) -> dict[str, Any]:
    return {
        "_class_name": "WanTransformer3DModel",
        "patch_size": config.patch_size,
        "num_attention_heads": config.num_heads,
        "attention_head_dim": config.head_dim,
        "in_channels": config.in_dim,
        "out_channels": config.out_dim,
        "text_dim": config.text_dim,
        "freq_dim": config.freq_dim,
        "ffn_dim": config.ffn_dim,
        "num_layers": config.num_layers,
        "cross_attn_norm": config.cross_attn_norm,
        "qk_norm": "rms_norm_across_heads" if config.qk_norm else None,
        "eps": config.eps,
        "added_kv_proj_dim": None,
        "image_dim": None,
        "rope_max_seq_len": 1024,
    }
