"""Converted pipelines: from a folder to a `VideoModel`.

dit           converted, causal       ->  params, RolloutConfig
vae                                   ->  codec, codec_params
text_encoder, tokenizer               ->  embed_text, loaded when a prompt is not yet on disk
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vidcache_jax.checkpoint import (
    CheckpointError,
    CheckpointInfo,
    read_info,
    restore_params,
)
from vidcache_jax.checkpoint.info import DIT, INFO_NAME, TEXT_ENCODER, TOKENIZER, VAE
from vidcache_jax.checkpoint.reader import abstract_dit, dit_config
from vidcache_jax.config import RolloutConfig, WanConfig
from vidcache_jax.models import umt5
from vidcache_jax.models.video_model import Text, VideoModel
from vidcache_jax.models.wan_vae import WanVAE, WanVAEConfig
from vidcache_jax.sharding import ONE_DEVICE, Layout
from vidcache_jax.text import EmbeddingCache, PromptTokenizer, TextEncoder, load_tokenizer

FRAMES_PER_SECOND = 16.0
"""Of Wan 2.1."""


def outline_pipeline(
    folder: str | Path,
    *,
    height: int = 480,
    width: int = 832,
    rollout: Mapping[str, Any] | None = None,
    dtype: Any = None,
    embedding_cache: str | Path | None = None,
) -> VideoModel:
    """A text-to-video model from the folder that ``python -m checkpoints_convert`` made, but for
    its weights: instead of arrays ``params`` and ``codec_params`` have shapes (`fill_pipeline`).

    Args:
      folder: of a whole pipeline (`vidcache_jax.checkpoint.info` has its layout).
      height, width: of the video in pixels; multiples of 16 for Wan.
      rollout: fields of `RolloutConfig` that are to differ from what the checkpoint is known to
        want, or that are not known of it.
      dtype: of the DiT's parameters, in which it computes; by default as they were converted.
      embedding_cache: folder in which embeddings of prompts are kept. With it the text encoder is
        loaded only for new prompts, without it for every call; it is never kept in memory.

    Raises:
      CheckpointError: a part is missing, damaged or of another pipeline; the model is not causal,
        or it is not known how to sample it.
      ValueError: the size does not split into tokens, or a setting is impossible.
      OSError: a file is missing or cannot be read.
    """
    folder = Path(folder)
    infos = _read_infos(folder)
    settings = rollout_config(folder, infos[DIT], rollout or {})
    config = dit_config(folder / DIT, infos[DIT])
    vae = WanVAE(_part_config(folder, infos[VAE], WanVAEConfig))
    tokenizer = load_tokenizer(folder / TOKENIZER, config.text_len)
    text_config = _part_config(folder, infos[TEXT_ENCODER], umt5.UMT5Config)
    check_parts_fit(config, vae.config, text_config, tokenizer)
    latent_size = _latent_size(config, vae, height, width)
    identity = _identity(infos[TEXT_ENCODER], infos[TOKENIZER], config.text_len)
    cache = None if embedding_cache is None else EmbeddingCache(Path(embedding_cache), identity)
    embedder = PromptEmbedder(
        folder=folder / TEXT_ENCODER,
        config=text_config,
        dtype=infos[TEXT_ENCODER].dtype,
        tokenizer=tokenizer,
        cache=cache,
    )
    return VideoModel(
        name=folder.resolve().name,
        config=config,
        params=abstract_dit(folder / DIT, infos[DIT], config, dtype),
        rollout=settings,
        codec=vae,
        codec_params=vae.abstract_params(infos[VAE].dtype),
        embed_text=embedder,
        embed_texts=embedder.all_of,
        latent_size=latent_size,
        frames_per_second=FRAMES_PER_SECOND,
        text_encoder=identity,
    )


def fill_pipeline(
    outline: VideoModel, folder: str | Path, layout: Layout = ONE_DEVICE
) -> VideoModel:
    """A model of `outline_pipeline` with its weights.

    Args:
      layout: where the parameters go; each process reads only what its own chips hold.

    Raises:
      CheckpointError: the weights are damaged.
    """
    folder, on_mesh = Path(folder), layout.mesh is not None
    return dataclasses.replace(
        outline,
        params=restore_params(
            folder / DIT,
            outline.params,
            sharding=layout.params(outline.params) if on_mesh else None,
        ),
        codec_params=restore_params(
            folder / VAE,
            outline.codec_params,
            sharding=layout.named() if on_mesh else None,
        ),
    )


def rollout_config(folder: Path, info: CheckpointInfo, given: Mapping[str, Any]) -> RolloutConfig:
    """How to sample a DiT: as is known of its checkpoint, but for what is ``given``.

    Raises:
      CheckpointError: something is not known and not given, or the model is bidirectional.
      ValueError: a setting is impossible.
    """
    known = {
        name: getattr(info, name)
        for name in ("frames_per_chunk", "denoise_timesteps", "timestep_shift")
    }
    settings = {name: value for name, value in known.items() if value is not None} | dict(given)
    if missing := [name for name in known if name not in settings]:
        what = f"it is not known how {folder} wants to be sampled"
        remedy = f"give {', '.join('--' + name.replace('_', '-') for name in missing)}"
        if info.is_causal is False:
            what = f"{folder} is a bidirectional model, which cannot be run chunk by chunk"
            remedy = "convert a causal one such as Self-Forcing's, or if it is causal, " + remedy
        fields = ", ".join(f"{name}=..." for name in missing)
        raise CheckpointError(
            f"{what} ({info.evidence}); {remedy} (from Python: rollout=dict({fields}))"
        )
    if unknown := settings.keys() - {field.name for field in dataclasses.fields(RolloutConfig)}:
        raise ValueError(f"{sorted(unknown)} are no fields of RolloutConfig")
    return RolloutConfig(**settings)


def check_parts_fit(
    dit: WanConfig, vae: WanVAEConfig, text_encoder: umt5.UMT5Config, tokenizer: PromptTokenizer
) -> None:
    """Raises `CheckpointError` where two parts are not of one pipeline."""
    for what, one, other in (
        ("latent channels of the VAE and the DiT", vae.z_dim, dit.in_dim),
        ("widths of the text encoder and the DiT's text", text_encoder.dim, dit.text_dim),
    ):
        if one != other:
            raise CheckpointError(
                f"the {what} differ, {one} and {other}: they are of different pipelines"
            )
    if tokenizer.vocab_size > text_encoder.vocab_size:
        raise CheckpointError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the text encoder "
            f"{text_encoder.vocab_size}: they are of different pipelines"
        )


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class PromptEmbedder:
    """A prompt's embeddings, by a text encoder that is in memory only while it is needed."""

    folder: Path
    config: umt5.UMT5Config
    dtype: str
    tokenizer: PromptTokenizer
    cache: EmbeddingCache | None

    def __call__(self, prompt: str) -> Float[Array, "Tt text_dim"]:
        """Rows of the prompt's tokens alone.

        Raises:
          CheckpointError: the text encoder is damaged.
          OSError: the embeddings cannot be read from or written to the cache.
        """
        return jnp.asarray(self._embed(prompt, self._load))

    def all_of(self, prompts: Sequence[str]) -> list[Text]:
        """The same of several prompts, on the host; the text encoder is loaded once, if at all."""
        encoder = functools.cache(self._load)  # until this call ends
        found: list[Text] = []
        for prompt in prompts:
            try:
                found.append(self._embed(prompt, encoder))
            except CheckpointError:
                raise
            except ValueError as error:
                found.append(error)
        return found

    def _embed(
        self, prompt: str, encoder: Callable[[], TextEncoder]
    ) -> Float[np.ndarray, "Tt text_dim"]:
        compute = lambda prompt: encoder()(prompt)
        return compute(prompt) if self.cache is None else self.cache.get(prompt, compute)

    def _load(self) -> TextEncoder:
        params = restore_params(self.folder, umt5.abstract_params(self.config, self.dtype))
        return TextEncoder(tokenizer=self.tokenizer, config=self.config, params=params)


def _read_infos(folder: Path) -> dict[str, CheckpointInfo]:
    """Of every part, or a `CheckpointError` that names what is missing."""
    kinds = (DIT, VAE, TEXT_ENCODER, TOKENIZER)
    there = [kind for kind in kinds if (folder / kind / INFO_NAME).is_file()]
    if missing := [kind for kind in kinds if kind not in there]:
        alone = "a DiT alone" if (folder / INFO_NAME).is_file() else "no converted pipeline"
        has = f"has no {', '.join(missing)}" if there else f"is {alone}"
        raise CheckpointError(
            f"{folder} {has}; convert a whole pipeline to one folder: python -m "
            "checkpoints_convert SOURCE FOLDER --vae ... --text-encoder ... --tokenizer ..."
        )
    infos = {kind: read_info(folder / kind) for kind in kinds}
    for kind, info in infos.items():
        if info.kind != kind:
            raise CheckpointError(f"{folder / kind} holds a {info.kind}; convert again")
    return infos


def _part_config(folder: Path, info: CheckpointInfo, of: Any) -> Any:
    try:
        # JSON has lists; a hashable config needs tuples.
        tuples = {name: tuple(x) for name, x in info.config.items() if isinstance(x, list)}
        return of(**{**info.config, **tuples})
    except (TypeError, ValueError, ArithmeticError) as error:
        raise CheckpointError(
            f"the config of {folder / info.kind}: {error}; convert again"
        ) from error


def _latent_size(config: WanConfig, vae: WanVAE, height: int, width: int) -> tuple[int, int]:
    _, rows, columns = config.patch_size
    for name, pixels, patch in (("height", height, rows), ("width", width, columns)):
        step = vae.spatial_stride * patch
        if pixels < step or pixels % step:
            raise ValueError(
                f"{name} {pixels} must be a multiple of {step} pixels, such as "
                f"{max(1, round(pixels / step)) * step}"
            )
    return height // vae.spatial_stride, width // vae.spatial_stride


def _identity(encoder: CheckpointInfo, tokenizer: CheckpointInfo, text_len: int) -> str:
    """Names what decides a prompt's embeddings."""
    files = [file.sha256 for info in (encoder, tokenizer) for file in info.sources]
    return json.dumps([files, encoder.dtype, text_len])
