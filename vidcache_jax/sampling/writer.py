"""Frames to an mp4 that plays while it grows, and after whatever stops it."""

import os
from fractions import Fraction

import numpy as np

from vidcache_jax.sampling import mp4, output_file
from vidcache_jax.sampling.frame_sink import FrameSink, check_frames, enlarge


class VideoWriter(FrameSink):
    """Streams uint8 frames to an mp4 file in bounded memory.

    While it is open the video is at `partial_path` and plays up to the last full second. When the
    `with` block ends, in whatever way (Ctrl-C and errors included), what was written is finished
    and moved to `path`; with no frames written nothing is left behind and an older file at
    `path` stays. The same frames give the same bytes.

    Attributes:
      path: the absolute final path.
      partial_path: where the video is until then.
      num_frames: frames written so far.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        fps: float | Fraction,
        scale: int = 1,
        title: str = "",
        comment: str = "",
        codec: str | None = None,
    ):
        """Checks everything that can be checked before the first frame.

        Args:
          path: the final name, ending in .mp4; an existing file is replaced at the end.
          fps: frames per second.
          scale: integer factor by which each pixel is repeated in both directions. An even one
            also keeps the colours of neighbouring pixels apart, which 4:2:0 would mix.
          title, comment: kept in the file, for the prompt and the settings.
          codec: "libx264" or "mpeg4"; None takes the first that this PyAV has.

        Raises:
          ValueError: fps, scale, codec or the ending of the name is impossible.
          OSError: (or the fitting subclass) the file cannot be written there.
        """
        if not 0 < fps <= 1000:
            raise ValueError(f"fps={fps} must be positive and at most 1000")
        if scale < 1:
            raise ValueError(f"scale={scale} must be at least 1")
        self._codec = mp4.choose_codec(codec)
        # 1001 is the denominator of the broadcast rates (24000/1001 and its kin).
        self._fps = Fraction(fps).limit_denominator(1001)
        self._scale = scale
        self._metadata = {"title": title, "comment": comment}
        self._encoder: mp4.Mp4Encoder | None = None
        self._frame_shape: tuple[int, ...] | None = None
        self._is_closed = False
        self.num_frames = 0
        self.path, self.partial_path = output_file.reserve(path, ".mp4")

    def write(self, frames: np.ndarray) -> None:
        """Appends frames [F, Y, X, 3], uint8 RGB; Y and X must not change between calls.

        Raises:
          ValueError: wrong shape or type, an odd scaled size, or the writer is closed.
          OSError: the disk is full or gone; the message says how much has been kept.
        """
        if self._is_closed:
            raise ValueError(f"the writer of {self.path} is closed")
        frames = np.asarray(frames)
        self._frame_shape = check_frames(frames, self._frame_shape)
        try:
            for frame in frames:
                self._encode(enlarge(frame, self._scale))
        except OSError as error:
            raise self._keep_what_fits(error) from error

    def close(self) -> None:
        """Finishes the video and gives it its name; does nothing the second time.

        Raises:
          OSError: the end of the video did not fit, or it cannot be moved to `path`.
        """
        if self._is_closed:
            return
        if self._encoder is None or not self.num_frames:
            self._is_closed = True
            if self._encoder is not None:
                self._encoder.release()
            output_file.discard(self.partial_path)
            return
        try:
            self._encoder.finish()
        except OSError as error:
            raise self._keep_what_fits(error) from error
        self._is_closed = True
        output_file.publish(self.partial_path, self.path)

    def _encode(self, pixels: np.ndarray) -> None:
        if self._encoder is None:
            height, width, _ = pixels.shape
            if not height or not width or height % 2 or width % 2:
                raise ValueError(
                    f"a video of {height} x {width} pixels (scale={self._scale}) has an odd or "
                    "empty side, which 4:2:0 video cannot have; choose an even scale"
                )
            self._encoder = mp4.Mp4Encoder(
                self.partial_path,
                height=height,
                width=width,
                fps=self._fps,
                codec=self._codec,
                metadata={key: text for key, text in self._metadata.items() if text},
            )
        self._encoder.encode(pixels, self.num_frames)
        self.num_frames += 1

    def _keep_what_fits(self, error: OSError) -> OSError:
        """Ends a video that the disk refused to take; returns the error that says what is left."""
        self._is_closed = True
        if self._encoder is not None:
            self._encoder.release()
        num_kept = mp4.cut_to_playable(self.partial_path)
        failure = output_file.cannot_write(self.path, error)
        if not num_kept:
            output_file.discard(self.partial_path)
            return failure
        output_file.publish(self.partial_path, self.path)
        seconds = float(num_kept / self._fps)
        return OSError(f"{failure}. The first {seconds:.1f} s are kept there and play")
