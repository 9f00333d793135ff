"""Models by name."""

from collections.abc import Callable, Mapping

from vidcache_jax.models.video_model import VideoModel
from vidcache_jax.tiny import model as tiny

MODELS: Mapping[str, Callable[[], VideoModel]] = {"tiny": tiny.load}


def load_model(name: str = "tiny") -> VideoModel:
    """A model ready to run.

    Raises:
      ValueError: no model has that name; the message lists the names.
    """
    if name not in MODELS:
        raise ValueError(f"no model {name!r}; there are {', '.join(MODELS)}")
    return MODELS[name]()
