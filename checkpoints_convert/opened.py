"""A model's checkpoint: opened, recognised, ready to be read parameter by parameter."""

import dataclasses
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from checkpoints_convert.provenance import Provenance
from checkpoints_convert.rules import Rule, lazy_params
from checkpoints_convert.source import Source, Tensors, is_float
from vidcache_jax.array_typing import Params
from vidcache_jax.checkpoint import CheckpointError
from vidcache_jax.config import WanConfig
from vidcache_jax.models.umt5 import UMT5Config
from vidcache_jax.models.wan_vae import WanVAEConfig

Config = TypeVar("Config", WanConfig, WanVAEConfig, UMT5Config)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class OpenedModel(Generic[Config]):
    """The DiT, the VAE or the text encoder, its tensors under its family's plain names.

    Attributes:
      kind: ``"dit"``, ``"vae"`` or ``"text_encoder"``.
      family: whose names the tensors have.
      sizes: of the model, for people.
      abstract: the parameters' shapes.
    """

    kind: str
    family: str
    config: Config
    sizes: str
    source: Source
    tensors: Tensors
    rules: tuple[Rule, ...]
    abstract: Params
    loras: tuple[Source, ...] = ()
    provenance: Provenance | None = None

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
        try:
            return lazy_params(self.rules, self.tensors, self.abstract, dtype)
        except CheckpointError as error:
            beside = " and its config.json" if self.source.config else ""
            remedy = "give a complete checkpoint"
            if self.kind == "dit":
                remedy += ", or the config.json of these weights with --config"
            raise CheckpointError(
                f"{self.source.path}{beside}, read as {self.family} names of {self.sizes}: "
                f"{error}\n{remedy}"
            ) from error
