"""Models by name or by the folder they were converted to."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vidcache_jax.models.video_model import VideoModel
from vidcache_jax.pipeline import load_pipeline
from vidcache_jax.tiny import model as tiny

MODELS: Mapping[str, Callable[[], VideoModel]] = {"tiny": tiny.load}


def load_model(name: str | Path = "tiny", **options: Any) -> VideoModel:
    """A model ready to run.

    Args:
      name: of a built-in model, or the folder of a converted pipeline.
      options: of `load_pipeline`, such as ``height``, ``width`` and ``rollout``; a built-in model
        has none.

    Raises:
      ValueError: there is no such model, or it cannot be loaded; the message has the remedy.
    """
    if name in MODELS:
        if options:
            raise ValueError(f"the built-in model {name} has no options {sorted(options)}")
        return MODELS[str(name)]()
    if not Path(name).is_dir():
        raise ValueError(
            f"no model {str(name)!r}; there are {', '.join(MODELS)}, and folders that "
            "python -m checkpoints_convert makes"
        )
    return load_pipeline(name, **options)
