"""How a given video begins: an image or a clip, read and cut to what a model can commit."""

import bisect
from collections.abc import Callable
from pathlib import Path

import av
import av.error
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from vidcache_jax.models.video_model import VideoModel
from vidcache_jax.sampling.frame_sink import check_frames

Frame = UInt8[np.ndarray, "height width 3"]
Fit = Callable[[Image.Image], Frame]
Video = UInt8[np.ndarray, "f height width 3"]


def read_prefix(path: str | Path, model: VideoModel) -> Video:
    """The frames of an image or video file, scaled to cover the model's frames, edges cut off.

    A video is sampled at the model's rate: at each time the frame that is shown then.

    Raises:
      OSError: there is no such file.
      ValueError: it is neither, or has no frames.
    """
    path = Path(path)
    height, width = model.frame_size
    if not path.is_file():
        raise FileNotFoundError(f"no file {path} to begin the video with; check the path")
    # Frame by frame: a clip in its own size may be larger than memory.
    fit = lambda image: np.asarray(ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS))
    return np.stack(_read_image(path, fit) or _read_video(path, model.frames_per_second, fit))


def prefix_chunks(prefix: Video, model: VideoModel) -> list[UInt8[np.ndarray, "_ height width 3"]]:
    """Frames as whole chunks of the model, the first of which may be shorter (`Codec`).

    The latest frames count, as many as fill chunks. If they are too few for one, the first frame
    is repeated in front of them.

    Example: a first chunk of 9 frames, later ones of 12:
        1 frame   -> [9 times the frame]
        25 frames -> [frames 4..12, frames 13..24]

    Raises:
      ValueError: the prefix is empty, not uint8 or of another size than the model's frames.
    """
    check_frames(prefix, None)
    if prefix.shape[1:3] != model.frame_size or not len(prefix):
        given = f"{len(prefix)} frames of {prefix.shape[1]} x {prefix.shape[2]} pixels"
        height, width = model.frame_size
        raise ValueError(
            f"a prefix of {given}; the model makes {height} x {width}, read_prefix scales to that"
        )
    pixels = lambda chunks: model.codec.num_pixel_frames(chunks * model.rollout.frames_per_chunk)
    count = max(1, bisect.bisect_right(range(1, len(prefix) + 1), len(prefix), key=pixels))
    missing = max(0, pixels(count) - len(prefix))
    whole = np.concatenate([prefix[:1].repeat(missing, axis=0), prefix])[-pixels(count) :]
    return np.split(whole, [pixels(chunk) for chunk in range(1, count)])


def _read_image(path: Path, fit: Fit) -> list[Frame]:
    """The one image of the file, upright; none if it is something else or moves."""
    try:
        with Image.open(path) as image:
            if getattr(image, "n_frames", 1) > 1:
                return []
            return [fit(ImageOps.exif_transpose(image).convert("RGB"))]
    except UnidentifiedImageError:
        return []
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error}; give another image") from error


def _read_video(path: Path, frames_per_second: float, fit: Fit) -> list[Frame]:
    frames: list[Frame] = []
    shown, start, time = None, 0.0, 0.0

    def show_until(end: float) -> None:
        while shown is not None and len(frames) < round(end * frames_per_second, 6):
            frames.append(shown)

    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            for frame in container.decode(stream):
                time = frame.time or 0.0
                start = time if shown is None else start
                show_until(time - start)
                shown = fit(frame.to_image())
            show_until(time - start + 1 / float(stream.average_rate or frames_per_second))
    except (av.error.FFmpegError, IndexError) as error:
        raise ValueError(f"{path} is no image or video that can be read: {error}") from error
    if not frames:
        raise ValueError(f"{path} has no frames; give an image or a video")
    return frames
