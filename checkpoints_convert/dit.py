"""Opens the checkpoint of a DiT."""

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
from checkpoints_convert.opened import OpenedModel
from checkpoints_convert.provenance import Provenance, provenance
from checkpoints_convert.source import Source, Tensors, in_memory
from vidcache_jax.array_typing import Params
from vidcache_jax.config import WanConfig
from vidcache_jax.models.wan_dit import abstract_params


def open_dit(
    path: str | Path,
    *,
    config: WanConfig | None = None,
    which: str | None = None,
    loras: Sequence[str | Path] = (),
    lora_alpha: float | None = None,
) -> OpenedModel[WanConfig]:
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
    return _opened(source, family, config, tensors, opened, provenance(source))


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
        opened = _opened(source, family, config, tensors)
    else:
        opened = open_dit(
            path_or_mapping, config=config, which=which, loras=loras, lora_alpha=lora_alpha
        )
    return jax.tree.map(lambda leaf: leaf.materialise(), opened.params(jnp.dtype(dtype)))


def _opened(
    source: Source,
    family: Family,
    config: WanConfig,
    tensors: Tensors,
    loras: tuple[Source, ...] = (),
    known: Provenance | None = None,
) -> OpenedModel[WanConfig]:
    return OpenedModel(
        kind="dit",
        family=family.name,
        config=config,
        sizes=f"{config.num_layers} layers, dim {config.dim}, {config.num_heads} heads",
        source=source,
        tensors=tensors,
        rules=family.rules(config.patch_size),
        abstract=abstract_params(config),
        loras=loras,
        provenance=known,
    )
