"""The sprite world's standard list of prompts."""

import itertools

from vidcache_jax.tiny import paint, world


def told_scenes() -> list[tuple[str, str, str, str]]:
    """(colour, shape, motion, place), one of each colour and shape: 32.

    Motions and places take turns, so that neighbours in the list differ in everything but, now and
    then, the shape; the first few are already a mixed sample.
    """
    pairs = itertools.product(paint.SHAPES, paint.COLOURS)
    return [
        (colour, shape, world.MOTIONS[i % 4], paint.PLACES[i % 5])
        for i, (shape, colour) in enumerate(pairs)
    ]


def prompt_of(colour: str, shape: str, motion: str, place: str) -> str:
    return f"a {colour} {shape} {motion} in the {place}, camera still"
