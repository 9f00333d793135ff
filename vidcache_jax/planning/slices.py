"""Slices of chips that one can have, and how a run uses them."""

import math

from vidcache_jax.sharding import DATA, HEADS, SEQUENCE

_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
SHAPES = {
    "v4": _CUBES,
    "v5e": _FLAT,
    "v5p": _CUBES,
    "v6e": _FLAT,
    **dict.fromkeys(("a100", "h100", "h200"), ("1", "2", "4", "8")),
}
"""By chip, smallest first: TPU slices as Google Cloud offers them, GPUs of one machine."""


def chips_of(topology: str) -> tuple[str, int]:
    """ "v5e:2x4" -> ("v5e", 8).

    Raises:
      ValueError: not of that form, or of a chip that is not known.
    """
    chip, _, shape = topology.partition(":")
    sizes = shape.split("x")
    if chip not in SHAPES or not all(size.isdecimal() and int(size) for size in sizes):
        raise ValueError(
            f"topology {topology!r} should be one of {', '.join(SHAPES)} with a shape, for example "
            "v5e:2x4 or h100:8"
        )
    return chip, math.prod(map(int, sizes))


def mesh_for_one_video(num_heads: int, num_tokens: int, num_chips: int) -> dict[str, int]:
    """As many chips as divide the heads, then the tokens; the rest makes other videos."""
    heads = math.gcd(num_heads, num_chips)
    sequence = math.gcd(num_tokens // heads, num_chips // heads)
    return {DATA: num_chips // (heads * sequence), HEADS: heads, SEQUENCE: sequence}
