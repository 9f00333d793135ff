"""A picture of a profile: a cell per head, coloured by where it looks, named by its role."""

import os

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vidcache_jax.profiling.heads import HeadProfile
from vidcache_jax.profiling.shares import BUCKETS
from vidcache_jax.sampling import output_file

_CELL, _MARGIN, _LEGEND = (72, 30), 26, 18
_COLOURS = np.array([[222, 120, 40], [60, 140, 90], [70, 110, 200]])
"""Of sink, middle and current; a head's bar is divided among them by its shares."""
_BACKGROUND, _INK = (24, 24, 24), (240, 240, 240)


def draw_profile(profile: HeadProfile, path: str | os.PathLike[str]) -> None:
    """Writes a PNG: layers from top to bottom, heads from left to right.

    Raises:
      ValueError: the name does not end in .png. OSError: the file cannot be written.
    """
    path, partial = output_file.reserve(path, ".png")
    try:
        _draw(profile).save(partial, format="PNG")
    except OSError as error:
        output_file.discard(partial)
        raise output_file.cannot_write(path, error) from error
    output_file.publish(partial, path)


def _draw(profile: HeadProfile) -> Image.Image:
    shares, roles = profile.mean_shares, profile.roles.table
    layers, heads, _ = shares.shape
    width, height = _CELL
    size = (max(_MARGIN + heads * width, 200), _MARGIN + layers * height + _LEGEND)
    picture = Image.new("RGB", size, _BACKGROUND)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default_imagefont()
    for head in range(heads):
        draw.text((_MARGIN + head * width + 4, 8), f"head {head}", fill=_INK, font=font)
    for layer in range(layers):
        top = _MARGIN + layer * height
        draw.text((6, top + 9), str(layer), fill=_INK, font=font)
        for head in range(heads):
            left = _MARGIN + head * width
            ends = left + (width - 2) * np.concatenate([[0.0], np.cumsum(shares[layer, head])])
            for begin, end, colour in zip(ends, ends[1:], _COLOURS.tolist(), strict=False):
                box = (round(begin), top, round(end) - 1, top + height - 3)
                if box[2] >= box[0]:
                    draw.rectangle(box, fill=tuple(colour))
            draw.text((left + 6, top + 9), roles[layer][head], fill=_INK, font=font)
    for index, bucket in enumerate(BUCKETS):
        place = (_MARGIN + index * 58, size[1] - _LEGEND + 2)
        draw.text(place, bucket, fill=tuple(_COLOURS[index].tolist()), font=font)
    return picture
