"""Opens whatever holds a checkpoint: a file, several files with an index, a folder."""

from collections.abc import Collection
from pathlib import Path

from checkpoints_convert.safetensors_source import (
    open_safetensors,
    open_sharded,
    read_json,
    unreadable,
)
from checkpoints_convert.source import Source
from checkpoints_convert.torch_source import open_torch
from vidcache_jax.checkpoint import CheckpointError

_INDEX = ".safetensors.index.json"
_TORCH = (".pt", ".pth", ".bin")
_CONFIGS = ("config.json", "adapter_config.json")


_DIT_OR_LORA = frozenset({"num_heads", "num_attention_heads", "lora_alpha"})


def open_source(
    path: str | Path, which: str | None = None, *, describes: Collection[str] = _DIT_OR_LORA
) -> Source:
    """The tensors of a checkpoint, under the names of its files.

    Args:
      path: a ``.safetensors``, ``.pt`` or ``.pth`` file, a ``.safetensors.index.json``, or a folder
        with one of them (a diffusers pipeline's folder: its ``transformer``).
      which: the dict to take from a ``.pt`` file that holds several.
      describes: fields of which a ``config.json`` must have one to count as that of these weights:
        in Wan's folders the VAE lies beside the DiT's.

    Raises:
      CheckpointError: there is no such file, several that could be meant, or it cannot be read.
    """
    path = Path(path)
    weights = _weights(path) if path.is_dir() else path
    picked, left_out, files = None, (), (weights,)
    if weights.name.endswith(_INDEX):
        tensors, files = open_sharded(weights)
    elif weights.suffix == ".safetensors":
        tensors = open_safetensors(weights)
    elif weights.suffix in _TORCH:
        tensors, picked, left_out = open_torch(weights, which)
    else:
        raise CheckpointError(
            f"{weights} is no .safetensors, .pt or .pth file or folder; give one of these"
        )
    if which is not None and picked is None:
        raise CheckpointError(f"{weights} holds one set of tensors, not a {which}; omit --which")
    config = None
    for beside in (weights.parent / name for name in _CONFIGS):
        if beside.is_file() and config is None:
            config = _model_config(beside, describes)
            files = (*files, beside) if config is not None else files
    return Source(path, tensors, files, config, picked, left_out)


def _model_config(path: Path, describes: Collection[str]) -> dict | None:
    """A description of these weights; None if it is of something else."""
    fields = read_json(path)
    # A .pt file often lies in a folder of its own making, with any config.json.
    return fields if not fields.keys().isdisjoint(describes) else None


def _weights(folder: Path) -> Path:
    if (folder / "model_index.json").is_file() and (folder / "transformer").is_dir():
        folder = folder / "transformer"
    # Wan's own folders hold the VAE and the text encoder too.
    for stem in ("diffusion_pytorch_model", "adapter_model", "model"):
        for name in (stem + _INDEX, f"{stem}.safetensors"):
            if (folder / name).is_file():
                return folder / name
    suffixes = (".safetensors", *_TORCH)
    try:
        found = sorted(path for path in folder.iterdir() if path.suffix in suffixes)
    except OSError as error:
        raise unreadable(folder, error) from error
    if len(found) != 1:
        names = [path.name for path in found][:10]
        raise CheckpointError(
            f"{folder} holds {len(found)} files of weights {names}; name the one to convert"
        )
    return found[0]
