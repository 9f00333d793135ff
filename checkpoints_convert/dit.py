"""A DiT's checkpoint: opened, recognised, ready to be read parameter by parameter."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from checkpoints_convert.families import Family, config_of, recognise
from checkpoints_convert.lora import merge_lora
from checkpoints_convert.names import plain_names
from checkpoints_convert.open_source import open_source
from checkpoints_convert.provenance import Provenance, provenance
from checkpoints_convert.rules import lazy_params
from checkpoints_convert.source import Source, Tensors, in_memory, is_float
from vidcache_jax.array_typing import Params
from vidcache_jax.checkpoint import CheckpointError
from vidcache_jax.config import WanConfig
from vidcache_jax.models.wan_dit import abstract_params


@dataclasses.dataclass(frozen=True, eq=False)
class DitCheckpoint:
    """A checkpoint of a DiT, its tensors under their family's plain names."""

    source: Source
    loras: tuple[Source, ...]
    family: Family
    config: WanConfig
    tensors: Tensors
    provenance: Provenance

    @property
    def files(self) -> tuple[Path, ...]:
        """All that was opened, LoRA files last."""
        return (*self.source.files, *(file for lora in self.loras for file in lora.files))

    @property
    def dtype(self) -> np.dtype:
        """The widest dtype of the tensors: nothing is lost in it."""
        dtypes = {tensor.dtype for tensor in self.tensors.values() if is_float(tensor.dtype)}
        # float16 and bfloat16 hold each other only in float32.
        if len({dtype for dtype in dtypes if dtype.itemsize == 2}) == 2:
            dtypes.add(np.dtype(np.float32))
        # JAX has no float64 unless asked for.
        own = max(dtypes, key=lambda dtype: dtype.itemsize, default=np.dtype(np.float32))
        return np.dtype(np.float32) if own.itemsize > 4 else own

    def params(self, dtype: Any) -> Params:
        """A tree of `LazyLeaf`.

        Raises:
          CheckpointError: names or shapes do not fit the config; all of them are listed.
        """
        rules = self.family.rules(self.config.patch_size)
        try:
            return lazy_params(rules, self.tensors, abstract_params(self.config), dtype)
        except CheckpointError as error:
            beside = " and its config.json" if self.source.config else ""
            raise CheckpointError(
                f"{self.source.path}{beside}, read as {self.family.name} names of dim "
                f"{self.config.dim} with {self.config.num_layers} layers: {error}\n"
                "give the config.json of these weights with --config, or a complete checkpoint"
            ) from error


def open_dit(
    path: str | Path,
    *,
    config: WanConfig | None = None,
    which: str | None = None,
    loras: Sequence[str | Path] = (),
    lora_alpha: float | None = None,
) -> DitCheckpoint:
    """Opens and recognises a checkpoint; no weights are read.

    Args:
      path: see `open_source`.
      config: instead of the ``config.json`` beside the weights.
      which: the dict to take from a ``.pt`` file that holds several.
      loras: LoRA files or PEFT folders, merged in this order.
      lora_alpha: of all of them, where they do not say it.

    Raises:
      CheckpointError: it is unreadable, or no text-to-video DiT.
    """
    source = open_source(path, which)
    tensors = plain_names(source.tensors)
    family = recognise(tensors, source.path)
    config = config or config_of(family, tensors, source.config, source.path)
    opened = tuple(open_source(lora) for lora in loras)
    for lora in opened:
        tensors = merge_lora(tensors, lora, lora_alpha)
    return DitCheckpoint(source, opened, family, config, tensors, provenance(source))


def convert_dit(
    path_or_mapping: str | Path | Mapping[str, np.ndarray],
    config: WanConfig | None = None,
    *,
    dtype: Any = jnp.float32,
    which: str | None = None,
    loras: Sequence[str | Path] = (),
    lora_alpha: float | None = None,
) -> Params:
    """DiT parameters in memory, from a checkpoint's files or a mapping of its tensors.

    `save_checkpoint` writes large ones without holding them in memory. Arguments as `open_dit`.

    Raises:
      CheckpointError: the files cannot be read, or names or shapes do not fit ``config``; all of
        them are listed.
    """
    if isinstance(path_or_mapping, Mapping):
        tensors = plain_names(in_memory(path_or_mapping))
        family = recognise(tensors, "the mapping")
        source = Source(Path("the mapping"), tensors)
        config = config or config_of(family, tensors, None, source.path)
        opened = DitCheckpoint(source, (), family, config, tensors, Provenance())
    else:
        opened = open_dit(
            path_or_mapping, config=config, which=which, loras=loras, lora_alpha=lora_alpha
        )
    return jax.tree.map(lambda leaf: leaf.materialise(), opened.params(jnp.dtype(dtype)))
