"""The mp4 itself: encoder and muxer settings, and the rescue of a file that broke off.

The file is written as a fragmented mp4, a fragment each second: everything flushed so far plays
even if the process is killed. A clean end turns it in place into a regular mp4 (the muxer's
`hybrid_fragmented` mode), in which every player can seek.
"""

import os
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from av.video.stream import VideoStream

_CODEC_OPTIONS: dict[str, dict[str, object]] = {
    # No look-ahead and no B-frames: a written frame is an encoded frame, so an interrupt loses
    # nothing and memory does not depend on the encoder's queue. No keyframes at cuts: fragments
    # are a second long.
    "libx264": {"preset": "veryfast", "crf": "18", "tune": "zerolatency", "sc_threshold": "0"},
    "mpeg4": {"qmin": "2", "qmax": "4"},
}


def choose_codec(codec: str | None = None) -> str:
    """The codec of that name, or by default the best that this PyAV has.

    Raises:
      ValueError: it is not there.
    """
    available = [name for name in _CODEC_OPTIONS if name in av.codecs_available]
    if codec is None and available:
        return available[0]
    if codec not in available:
        raise ValueError(f"no video codec {codec!r} in this PyAV; there are {available}")
    return codec


class Mp4Encoder:
    """One open mp4 of a fixed size: 8-bit 4:2:0, BT.709, the same bytes for the same frames."""

    def __init__(
        self,
        path: Path,
        *,
        height: int,
        width: int,
        fps: Fraction,
        codec: str,
        metadata: Mapping[str, str],
    ):
        self._container = av.open(
            path,
            "w",
            format="mp4",
            # bitexact leaves out library versions; flush_packets leaves nothing in a buffer.
            options={
                "movflags": "hybrid_fragmented",
                "fflags": "+bitexact",
                "flush_packets": "1",
            },
        )
        self._container.metadata.update(metadata)
        self._stream = cast(VideoStream, self._container.add_stream(codec, rate=fps))
        self._stream.height, self._stream.width, self._stream.pix_fmt = height, width, "yuv420p"
        self._stream.options = _CODEC_OPTIONS[codec]
        context = self._stream.codec_context
        context.gop_size = max(1, round(fps))
        # With more, bytes would depend on the machine's core count; sampling needs the cores.
        context.thread_count = 1
        context.color_range = ColorRange.MPEG
        context.colorspace = Colorspace.ITU709
        context.color_primaries = ColorPrimaries.BT709
        context.color_trc = ColorTrc.BT709

    def encode(self, pixels: np.ndarray, index: int) -> None:
        """Adds frame number `index`, [Y, X, 3] uint8 RGB."""
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)
        frame.pts = index
        self._container.mux(self._stream.encode(frame))

    def finish(self) -> None:
        """Writes the rest and turns the file into a regular mp4."""
        self._container.mux(self._stream.encode(None))
        self._container.close()

    def release(self) -> None:
        """Closes the file after a failed write; the muxer then writes nothing more."""
        try:
            self._container.close()
        except OSError:
            pass  # The same failure once more.


def cut_to_playable(path: Path) -> int:
    """Cuts a broken-off fragmented mp4 after its last whole fragment; returns the frames left.

    The file is a row of boxes (32-bit size, 4-letter name, content): a header, and then for each
    fragment its index (moof) and its frames (mdat).
    """
    end = position = 0
    size = path.stat().st_size
    with path.open("rb") as file:
        while position + 8 <= size:
            file.seek(position)
            box_size, name = int.from_bytes(file.read(4), "big"), file.read(4)
            position += box_size
            if box_size < 8 or position > size:
                break
            if name == b"mdat":
                end = position
    os.truncate(path, end)
    if not end:
        return 0
    with av.open(path) as container:
        return sum(1 for packet in container.demux(video=0) if packet.size)
