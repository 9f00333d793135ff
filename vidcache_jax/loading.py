"""Models by name or by the folder they were converted to."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from vidcache_jax.models.video_model import VideoModel
from vidcache_jax.pipeline import fill_pipeline, outline_pipeline
from vidcache_jax.sharding import ONE_DEVICE, Layout, to_chips
from vidcache_jax.tiny import model as tiny

MODELS: Mapping[str, Callable[[], VideoModel]] = {"tiny": tiny.load}


@dataclasses.dataclass(frozen=True, eq=False)
class OpenedModel:
    """A model of which all is known but its weights, so that a run can be refused before they are
    loaded.

    Attributes:
      outline: the model, with shapes where its parameters would be; that of a built-in model may
        have them, which are small.
      load: the model with its parameters where a layout wants them.
    """

    outline: VideoModel
    load: Callable[[Layout], VideoModel]


def open_model(name: str | Path = "tiny", **options: Any) -> OpenedModel:
    """A model whose weights have not been loaded.

    Args:
      name: of a built-in model, or the folder of a converted pipeline.
      options: of `outline_pipeline`, such as ``height``, ``width`` and ``rollout``; a built-in
        model has none.

    Raises:
      ValueError: there is no such model, or it cannot be loaded; the message has the remedy.
    """
    if name in MODELS:
        if options:
            raise ValueError(f"the built-in model {name} has no options {sorted(options)}")
        model = MODELS[str(name)]()
        return OpenedModel(model, functools.partial(_on_mesh, model))
    if not Path(name).is_dir():
        raise ValueError(
            f"no model {str(name)!r}; there are {', '.join(MODELS)}, and folders that "
            "python -m checkpoints_convert makes"
        )
    outline = outline_pipeline(name, **options)
    return OpenedModel(outline, functools.partial(fill_pipeline, outline, name))


def load_model(
    name: str | Path = "tiny", *, layout: Layout = ONE_DEVICE, **options: Any
) -> VideoModel:
    """A model ready to run.

    Args:
      name: of a built-in model, or the folder of a converted pipeline.
      layout: where its parameters go; by default to one device, as `Session` needs them.
      options: of `open_model`.

    Raises:
      ValueError: there is no such model, or it cannot be loaded; the message has the remedy.
    """
    return open_model(name, **options).load(layout)


def _on_mesh(model: VideoModel, layout: Layout) -> VideoModel:
    if layout.mesh is None:
        return model
    return dataclasses.replace(
        model,
        params=jax.tree.map(to_chips, model.params, layout.params(model.params)),
        codec_params=layout.spread(model.codec_params),
    )
