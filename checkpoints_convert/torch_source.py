"""Tensors of ``.pt`` and ``.pth`` files, which are pickles in a zip archive.

Nothing in a file is ever executed: torch's unpickler is told to build tensors and plain
containers only. Before that, the archive itself is checked, so that it cannot expand.
"""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from checkpoints_convert.safetensors_source import unreadable
from checkpoints_convert.source import LazyTensor, Tensors
from vidcache_jax.checkpoint import CheckpointError

PREFERRED = ("generator_ema", "generator", "ema", "model", "state_dict", "generator_lora")
"""Dicts of weights within a file, the first that is there is taken."""
_LARGEST_PICKLE = 64 << 20
_MOST_PAGES = 1 << 30
"""Bytes read through one mapping before it is replaced."""


def open_torch(path: Path, which: str | None = None) -> tuple[Tensors, str | None, tuple[str, ...]]:
    """Names, shapes and dtypes of a file.

    Args:
      which: the dict to take, where the file holds several; `PREFERRED` by default.

    Returns:
      The tensors, the dict that was taken (``"a/b"`` if nested), other entries of the file.

    Raises:
      CheckpointError: the file is truncated, not of this format, wants code to be run, or has no
        such dict.
    """
    _check_archive(path)
    mapping = _Mapping(path)
    state, picked, left_out = _pick(path, mapping.load(), which)
    not_tensors = [str(name) for name, value in state.items() if not _is_tensor(value)]

    def lazy(name: str, tensor: Any) -> LazyTensor:
        dtype = str(tensor.dtype).removeprefix("torch.")
        try:
            own = jnp.dtype(dtype)
            size = tensor.untyped_storage().nbytes()
        except (TypeError, RuntimeError, NotImplementedError) as error:
            raise CheckpointError(
                f"{path}: tensor {name} is of dtype {dtype}, layout {tensor.layout}, which cannot "
                "be converted; take the bfloat16 or float32 version of the checkpoint"
            ) from error
        # Strides of zero make a huge tensor of few bytes.
        if tensor.numel() * own.itemsize > size:
            raise CheckpointError(
                f"{path}: tensor {name} of shape {tuple(tensor.shape)} is larger than its data; "
                "the file is damaged, download it again"
            )
        return LazyTensor(
            tuple(tensor.shape), own, lambda: mapping.read(picked, name, own), str(path)
        )

    tensors = {str(name): lazy(name, x) for name, x in state.items() if _is_tensor(x)}
    return tensors, picked, (*left_out, *not_tensors)


class _Mapping:
    """The file, mapped into memory; mapped anew when much was read through it.

    A mapping keeps every page that was read through it, and the pages of a whole file are the
    model.
    """

    def __init__(self, path: Path):
        self.path, self.content, self.touched = path, None, 0

    def load(self) -> Any:
        try:
            import torch
        except ImportError as error:
            raise CheckpointError(
                f"{self.path} needs torch to be read; "
                "pip install 'vidcache-jax[convert]', or take a .safetensors version"
            ) from error
        if self.content is None or self.touched > _MOST_PAGES:
            self.content, self.touched = None, 0
            try:
                self.content = torch.load(
                    self.path, map_location="cpu", mmap=True, weights_only=True
                )
            # The unpickler meets arbitrary bytes and raises whatever they provoke.
            except Exception as error:
                if "weights" in str(error).lower() and "only" in str(error).lower():
                    raise CheckpointError(
                        f"{self.path} holds more than tensors, and nothing in it will be "
                        "executed; save only the state dict again, or take a .safetensors version"
                    ) from error
                raise unreadable(self.path, error) from error
        return self.content

    def read(self, picked: str | None, name: Any, dtype: np.dtype) -> np.ndarray:
        state = self.load()
        for key in picked.split("/") if picked else ():
            state = state[key]
        tensor = state[name].detach()
        self.touched += tensor.numel() * dtype.itemsize
        if dtype == jnp.bfloat16:  # which NumPy has not
            import torch

            return np.array(tensor.view(torch.int16).numpy()).view(dtype)
        return np.array(tensor.numpy())


def _check_archive(path: Path) -> None:
    try:
        size = path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception as error:
        raise unreadable(path, error) from error
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED:
            raise CheckpointError(
                f"{path}: {entry.filename} is compressed, which torch never does; it might expand "
                "without end, so it is not read; save the checkpoint again with torch.save"
            )
        if entry.filename.endswith(".pkl") and entry.file_size > _LARGEST_PICKLE:
            raise CheckpointError(
                f"{path}: {entry.filename} of {entry.file_size} bytes is no list of tensors; "
                "save only the state dict again"
            )
    end = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        if entry.header_offset < end or entry.header_offset + entry.file_size > size:
            raise CheckpointError(
                f"{path}: {entry.filename} overlaps other data, so that the file claims more than "
                "it has; it is damaged, download it again"
            )
        end = entry.header_offset + entry.file_size


def _pick(
    path: Path, content: Any, which: str | None
) -> tuple[Mapping[Any, Any], str | None, tuple[str, ...]]:
    """The dict that holds tensors themselves, and how it was reached."""
    picked: list[str] = []
    left_out: list[str] = []
    while True:
        if not isinstance(content, Mapping):
            raise CheckpointError(
                f"{path} holds a {type(content).__name__}, not tensors by name; "
                "save the model's state_dict() again"
            )
        dicts = [key for key, value in content.items() if isinstance(value, Mapping)]
        if which is None or picked:
            # A dict may hold itself; no checkpoint is nested deeper.
            if len(picked) == 3 or any(_is_tensor(value) for value in content.values()):
                break
            key = next((key for key in PREFERRED if key in dicts), None)
        else:
            key = which if which in dicts else None
        if key is None:
            raise CheckpointError(
                f"{path} has no {which or 'dict of weights'}; "
                f"it holds {sorted(map(str, content))[:10]}, choose one with --which"
            )
        left_out += [str(other) for other in content if other != key]
        picked.append(key)
        content = content[key]
    return content, "/".join(picked) or None, tuple(left_out)


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "untyped_storage") and hasattr(value, "layout")
