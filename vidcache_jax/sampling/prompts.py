"""Prompts embedded together, so that a text encoder has to be loaded but once."""

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np

from vidcache_jax.checkpoint import CheckpointError
from vidcache_jax.models.video_model import Text, VideoModel


def embed_all(model: VideoModel, prompts: Iterable[str]) -> dict[str, Text]:
    """Each prompt with its embeddings, of its tokens alone.

    Raises:
      CheckpointError: the text encoder is damaged. OSError: embeddings cannot be read or stored.
    """
    different = tuple(dict.fromkeys(prompts))
    if model.embed_texts is not None:
        return dict(zip(different, model.embed_texts(different), strict=True))
    return {prompt: _embeddings(model, prompt) for prompt in different}


def with_texts(model: VideoModel, texts: Mapping[str, Text]) -> VideoModel:
    """The model with prompts that are embedded already; others are embedded as before."""

    def embed_text(prompt: str):
        text = texts.get(prompt)
        if isinstance(text, ValueError):
            raise text
        return model.embed_text(prompt) if text is None else text

    return dataclasses.replace(model, embed_text=embed_text, embed_texts=None)


def _embeddings(model: VideoModel, prompt: str) -> Text:
    try:
        return np.asarray(model.embed_text(prompt))
    except CheckpointError:
        raise
    except ValueError as error:
        return error
