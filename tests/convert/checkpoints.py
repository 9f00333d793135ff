"""Small checkpoints in every form they come in."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

from tests.models.cases import Case, case

CASE = case(num_layers=3)
"""Small enough for thousands of files."""


def config_json(it: Case = CASE) -> str:
    return json.dumps({"_class_name": "WanModel", **dataclasses.asdict(it.config)})


def wan_folder(folder: Path, state=None, it: Case = CASE) -> Path:
    """As Wan is released: weights and config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(it.state if state is None else state, folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(config_json(it))
    return folder


def sharded_folder(folder: Path, num_shards: int = 3, it: Case = CASE) -> Path:
    """As the 14B is released."""
    folder.mkdir(parents=True, exist_ok=True)
    names, weight_map = sorted(it.state), {}
    for i in range(num_shards):
        shard = f"diffusion_pytorch_model-{i + 1:05}-of-{num_shards:05}.safetensors"
        own = names[i::num_shards]
        save_file({name: it.state[name] for name in own}, folder / shard)
        weight_map |= dict.fromkeys(own, shard)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(config_json(it))
    return folder


def tensors(state, prefix: str = "", dtype=torch.float32) -> dict[str, torch.Tensor]:
    """A state dict of torch."""
    return {prefix + name: torch.tensor(np.asarray(x), dtype=dtype) for name, x in state.items()}


def save_pt(path: Path, content) -> Path:
    torch.save(content, path)
    return path
