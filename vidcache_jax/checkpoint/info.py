"""What is known of a converted checkpoint: a JSON file beside its weights.

folder/
  checkpoint.json    CheckpointInfo
  params/            an orbax checkpoint of the parameter tree

A whole pipeline is a folder of such folders, named by the kind of what they hold:

folder/
  dit/, vae/, text_encoder/
  tokenizer/         tokenizer.json and its checkpoint.json, without params
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vidcache_jax.checkpoint.error import CheckpointError

INFO_NAME = "checkpoint.json"
PARAMS_NAME = "params"
DIT, VAE, TEXT_ENCODER, TOKENIZER = "dit", "vae", "text_encoder", "tokenizer"
"""Kinds of what is converted, and the folders of a pipeline that hold them."""
FORMAT = 1
"""Raised when an older reader would misread a folder."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceFile:
    """A file the weights came from."""

    name: str
    sha256: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointInfo:
    """Where converted weights come from and what they are.

    Attributes:
      kind: which model they are of, ``"dit"``, ``"vae"``, ``"text_encoder"``, or ``"tokenizer"``.
      config: the fields of the model's config.
      dtype: of every parameter; empty for a tokenizer, which has none.
      family: whose names the source used, e.g. ``"Wan"`` or ``"diffusers"``.
      picked: the dict of a ``.pt`` file that was used, such as ``"generator_ema"``.
      is_causal: True for models distilled to run chunk by chunk, False for Wan's own
        bidirectional ones, None where it cannot be known: the tensors look the same.
      frames_per_chunk, denoise_timesteps, timestep_shift: how the model was trained to be
        sampled (`RolloutConfig`), None where it cannot be known.
      evidence: what the last four were concluded from.
      sources: the files, LoRA files last.
      written_by: the version that wrote the folder.
    """

    kind: str
    config: Mapping[str, Any]
    dtype: str
    family: str
    picked: str | None = None
    is_causal: bool | None = None
    frames_per_chunk: int | None = None
    denoise_timesteps: tuple[float, ...] | None = None
    timestep_shift: float | None = None
    evidence: str = ""
    sources: tuple[SourceFile, ...] = ()
    written_by: str = ""

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=2) + "\n"


def read_info(folder: str | Path) -> CheckpointInfo:
    """The info of a converted checkpoint, without touching its weights.

    Raises:
      CheckpointError: the folder is not a converted checkpoint, or one of a later format.
    """
    path = Path(folder) / INFO_NAME
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        remedy = "make one with python -m checkpoints_convert"
        if (Path(folder) / DIT / INFO_NAME).is_file():
            remedy = f"it is a whole pipeline, give its folder {DIT}"
        raise CheckpointError(
            f"{folder} is not a converted checkpoint ({INFO_NAME}: {error}); {remedy}"
        ) from error
    if not isinstance(fields, dict) or fields.pop("format", None) != FORMAT:
        raise CheckpointError(
            f"{path} is not of format {FORMAT}; convert again with this version, or update it"
        )
    try:
        sources = tuple(SourceFile(**each) for each in fields.pop("sources"))
        steps = fields.pop("denoise_timesteps")
        return CheckpointInfo(
            **fields, sources=sources, denoise_timesteps=None if steps is None else tuple(steps)
        )
    except (TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); convert again") from error
