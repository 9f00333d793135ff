"""A whole pipeline: DiT, VAE, text encoder and tokenizer, from their folders to one folder."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from checkpoints_convert.companions import open_text_encoder, open_vae
from checkpoints_convert.convert import Stage, convert, silent, source_files
from checkpoints_convert.opened import OpenedModel
from checkpoints_convert.verify import verify, verify_sources
from checkpoints_convert.writer import check_space, new_folder
from vidcache_jax import __version__
from vidcache_jax.array_typing import Params
from vidcache_jax.checkpoint import CheckpointError, CheckpointInfo
from vidcache_jax.checkpoint.info import INFO_NAME, TEXT_ENCODER, TOKENIZER, VAE
from vidcache_jax.config import WanConfig
from vidcache_jax.models.umt5 import UMT5Config
from vidcache_jax.models.wan_vae import WanVAEConfig
from vidcache_jax.pipeline import check_parts_fit
from vidcache_jax.text import load_tokenizer, tokenizer_file

COMPANIONS = (VAE, TEXT_ENCODER, TOKENIZER)
_PLACES: Mapping[str, tuple[str, ...]] = {
    VAE: ("vae", "Wan2.1_VAE.pth", "Wan2.1_VAE.safetensors"),
    TEXT_ENCODER: (
        "text_encoder",
        "models_t5_umt5-xxl-enc-bf16.pth",
        "models_t5_umt5-xxl-enc-bf16.safetensors",
    ),
    TOKENIZER: ("tokenizer", "google/umt5-xxl"),
}
"""Where a pipeline's folder holds them: as diffusers lays it out, as Wan does."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class OpenedPipeline:
    """All parts of a pipeline, that fit each other.

    Attributes:
      tokenizer: its ``tokenizer.json``.
    """

    dit: OpenedModel[WanConfig]
    vae: OpenedModel[WanVAEConfig]
    text_encoder: OpenedModel[UMT5Config]
    tokenizer: Path

    @property
    def models(self) -> Mapping[str, OpenedModel]:
        """By the folders they are written to."""
        return {model.kind: model for model in (self.dit, self.vae, self.text_encoder)}

    def dtypes(self, dtype: Any = None) -> Mapping[str, np.dtype]:
        """What each model is written in: ``dtype``, but the VAE and all without it as they are."""
        return {
            kind: model.dtype if dtype is None or model is self.vae else np.dtype(dtype)
            for kind, model in self.models.items()
        }

    def params(self, dtype: Any = None) -> Mapping[str, Params]:
        """Trees of `LazyLeaf`.

        Raises:
          CheckpointError: names or shapes of one do not fit; all of them are listed.
        """
        dtypes = self.dtypes(dtype)
        return {kind: model.params(dtypes[kind]) for kind, model in self.models.items()}


def find_companions(source: Path, given: Mapping[str, Path | None]) -> Mapping[str, Path]:
    """Where the VAE, the text encoder and the tokenizer of a DiT lie.

    Args:
      source: the DiT; if it is the folder of a whole pipeline, they are looked for in it.
      given: a file or folder for those of `COMPANIONS` that lie elsewhere; the folder of a whole
        pipeline will do.

    Returns:
      All of them, or none where there are none: ``source`` is a DiT alone.

    Raises:
      CheckpointError: some of them are missing.
    """
    found = {
        name: path for name in COMPANIONS if (path := _within(given.get(name) or source, name))
    }
    # What was named is taken, also where it is not laid out as a pipeline.
    found |= {name: path for name in COMPANIONS if (path := given.get(name)) and name not in found}
    if found and (missing := [name for name in COMPANIONS if name not in found]):
        options = ", ".join(f"--{name.replace('_', '-')}" for name in missing)
        raise CheckpointError(
            f"{source} comes with {', '.join(found)} but no {' and no '.join(missing)}: say where "
            f"they are with {options}; or name the file of the DiT alone to convert only that"
        )
    return found


def _within(folder: Path, name: str) -> Path | None:
    """The part of a pipeline's folder; None if it has none."""
    return next((path for place in _PLACES[name] if (path := folder / place).exists()), None)


def open_pipeline(
    dit: OpenedModel[WanConfig], *, vae: str | Path, text_encoder: str | Path, tokenizer: str | Path
) -> OpenedPipeline:
    """Opens and recognises the other parts; no weights are read.

    Raises:
      CheckpointError: one of them is unreadable or another model, or they do not fit each other.
    """
    try:
        own_tokenizer = load_tokenizer(tokenizer)
    except (OSError, ValueError) as error:
        raise CheckpointError(str(error)) from error
    opened = OpenedPipeline(
        dit=dit,
        vae=open_vae(vae),
        text_encoder=open_text_encoder(text_encoder),
        tokenizer=tokenizer_file(tokenizer),
    )
    check_parts_fit(
        opened.dit.config, opened.vae.config, opened.text_encoder.config,
        own_tokenizer,
    )  # fmt: skip
    return opened


def convert_pipeline(
    opened: OpenedPipeline, folder: str | Path, *, dtype: Any = None, stage: Stage = silent
) -> None:
    """Writes all parts to a new folder, which appears when the last of them is complete.

    folder/
      dit/, vae/, text_encoder/   converted checkpoints
      tokenizer/                  tokenizer.json and where it is from

    Args:
      dtype: of the DiT and the text encoder, by default their own. The VAE keeps its own: pixels
        suffer first, and it is small.

    Raises:
      CheckpointError: see `save_checkpoint`; the sources are never touched.
    """
    folder = Path(os.path.abspath(folder))
    trees = opened.params(dtype)
    check_space(folder, sum(leaf.nbytes for leaf in jax.tree.leaves(trees)))
    with new_folder(folder) as partial:
        for kind, model in opened.models.items():
            told = lambda what, nbytes, kind=kind: stage(f"{kind}: {what}", nbytes)
            convert(model, partial / kind, dtype=opened.dtypes(dtype)[kind], stage=told)
        _copy_tokenizer(opened.tokenizer, partial / TOKENIZER)


def verify_pipeline(opened: OpenedPipeline, folder: str | Path, *, stage: Stage = silent) -> int:
    """Compares every part with its source, see `verify`.

    Returns:
      How many tensors of the sources were compared.

    Raises:
      CheckpointError: something differs; the message names the first thing that does.
    """
    folder, count = Path(folder), 0
    for kind, model in opened.models.items():
        told = lambda what, nbytes, kind=kind: stage(f"{kind}: {what}", nbytes)
        count += verify(model, folder / kind, stage=told)
    verify_sources([opened.tokenizer], folder / TOKENIZER)
    copy = folder / TOKENIZER / opened.tokenizer.name
    if copy.read_bytes() != opened.tokenizer.read_bytes():
        raise CheckpointError(f"{copy} differs from its source; convert again, and check the disk")
    return count


def _copy_tokenizer(file: Path, folder: Path) -> None:
    folder.mkdir()
    (folder / file.name).write_bytes(file.read_bytes())
    info = CheckpointInfo(
        kind=TOKENIZER, config={}, dtype="", family="tokenizers",
        sources=source_files([file], silent), written_by=f"vidcache_jax {__version__}",
    )  # fmt: skip
    (folder / INFO_NAME).write_text(info.to_json(), encoding="utf-8")
