"""Options that say which model a command runs, and how large its videos are written."""

import dataclasses
from pathlib import Path

from vidcache_jax.loading import OpenedModel, open_model
from vidcache_jax.models.video_model import VideoModel

MIN_ROWS = 256
"""Rows of pixels that a small video is enlarged to, as far as whole numbers do."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Shared by the commands that make videos."""

    model: str = "tiny"
    """The built-in model to run."""
    checkpoint: Path | None = None
    """Run this pipeline instead: a folder that python -m checkpoints_convert made."""
    height: int = 480
    """Of a checkpoint's video, in pixels; a multiple of 16 for Wan."""
    width: int = 832
    """Of a checkpoint's video, in pixels; a multiple of 16 for Wan."""
    frames_per_chunk: int | None = None
    """Latent frames a checkpoint makes at a time, where it is not known of it."""
    denoise_timesteps: tuple[float, ...] | None = None
    """Likewise the timesteps of its denoise passes, before the shift."""
    timestep_shift: float | None = None
    """Likewise the shift of its schedule."""
    scale: int | None = None
    """Enlarge every pixel to scale x scale in the mp4; by default small videos are enlarged to 256
    rows, as far as whole numbers do."""
    compilation_cache: Path = Path("~/.cache/vidcache_jax")
    """Folder in which compiled programs are kept, so that the next run starts faster."""
    embedding_cache: Path = Path("~/.cache/vidcache_jax/embeddings")
    """Folder in which embeddings of a checkpoint's prompts are kept: the text encoder is loaded for
    new ones only, once for all of them."""


def opened_by(options: ModelOptions) -> OpenedModel:
    """The model that the options name, before its weights are loaded.

    Raises:
      ValueError: there is none, or an option is impossible. OSError: a file cannot be read.
    """
    if options.checkpoint is None:
        return open_model(options.model)
    names = ("frames_per_chunk", "denoise_timesteps", "timestep_shift")
    return open_model(
        options.checkpoint,
        height=options.height,
        width=options.width,
        rollout={name: x for name in names if (x := getattr(options, name)) is not None},
        embedding_cache=options.embedding_cache.expanduser(),
    )


def scale_of(options: ModelOptions, model: VideoModel) -> int:
    """How often a pixel is repeated in both directions."""
    return max(1, MIN_ROWS // model.frame_size[0]) if options.scale is None else options.scale
