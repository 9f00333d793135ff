"""What a prompt of the sprite world says that finished frames can be checked for."""

import dataclasses

from vidcache_jax.tiny import paint, prompt


@dataclasses.dataclass(frozen=True)
class ToldSprite:
    """One clause of the prompt; None is not said."""

    colour: int | None
    """Index in `paint.COLOURS`."""
    shape: int | None
    """Index in `paint.SHAPES`."""
    leaves: bool
    """Whether it may be out of sight: it drifts, a wall is told, or its motion is not told."""


@dataclasses.dataclass(frozen=True)
class Told:
    """The sprites and the place of a prompt."""

    sprites: tuple[ToldSprite, ...]
    place: int | None
    """Index in `paint.PLACES`."""


def told(text: str) -> Told:
    """Reads a prompt.

    Raises:
      ValueError: it is no sentence of the sprite world (`tiny.prompt.tokenize`).
    """
    words = [prompt.WORDS[slot] for slot in prompt.tokenize(text).tolist()]
    find = lambda word, among: among.index(word) if word in among else None
    clauses = [words[i : i + 4] for i in (0, 4) if words[i + 1]]
    wall, place = words[8:10]
    return Told(
        sprites=tuple(
            ToldSprite(
                colour=find(colour, paint.COLOURS),
                shape=find(shape, paint.SHAPES),
                leaves=bool(wall) or verb not in ("bounces", "circles"),
            )
            for colour, shape, verb, _ in clauses
        ),
        place=find(place, paint.PLACES),
    )
