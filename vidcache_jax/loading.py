"""Models by name or by the folder they were converted to."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from vidcache_jax.models.video_model import VideoModel
from vidcache_jax.pipeline import load_pipeline
from vidcache_jax.sharding import ONE_DEVICE, Layout, to_chips
from vidcache_jax.tiny import model as tiny

MODELS: Mapping[str, Callable[[], VideoModel]] = {"tiny": tiny.load}


def load_model(
    name: str | Path = "tiny", *, layout: Layout = ONE_DEVICE, **options: Any
) -> VideoModel:
    """A model ready to run.

    Args:
      name: of a built-in model, or the folder of a converted pipeline.
      layout: where its parameters go; by default to one device, as `Session` needs them.
      options: of `load_pipeline`, such as ``height``, ``width`` and ``rollout``; a built-in model
        has none.

    Raises:
      ValueError: there is no such model, or it cannot be loaded; the message has the remedy.
    """
    if name in MODELS:
        if options:
            raise ValueError(f"the built-in model {name} has no options {sorted(options)}")
        return _on_mesh(MODELS[str(name)](), layout)
    if not Path(name).is_dir():
        raise ValueError(
            f"no model {str(name)!r}; there are {', '.join(MODELS)}, and folders that "
            "python -m checkpoints_convert makes"
        )
    return load_pipeline(name, layout=layout, **options)


def _on_mesh(model: VideoModel, layout: Layout) -> VideoModel:
    if layout.mesh is None:
        return model
    return dataclasses.replace(
        model,
        params=jax.tree.map(to_chips, model.params, layout.params(model.params)),
        codec_params=layout.spread(model.codec_params),
    )
