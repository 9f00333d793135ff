"""The language of the sprite world: a small vocabulary, read into fixed slots.

    a [red] circle bounces and a square [drifts left] behind a wall in the desert, camera pans right

Each clause has a slot for each thing it may say; a slot that is not said is 0. Jointly the slots
are what the model is told:

    sprite 1: colour, shape, verb, direction | sprite 2: the same | scene: wall, place, camera,
    direction
"""

import difflib
import re

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vidcache_jax.tiny import paint, world

VERBS = ("drifts", "bounces", "circles")
DIRECTIONS = ("left", "right")
CAMERA = ("still", "pans")
GENERIC = "sprite"
"""Stands where a shape is not named."""
WALL = "wall"
WORDS = (
    "", *paint.COLOURS, *paint.SHAPES, GENERIC, *VERBS, *DIRECTIONS, WALL, *paint.PLACES, *CAMERA
)  # fmt: skip
"""Every word with a meaning; its place is its id, 0 = not said."""
FILLERS = ("a", "an", "the", "in", "at", "on", "over", "by", "is", "with", "behind", "camera")
"""Words that read well and say nothing of their own."""

_SPRITE, _SCENE = 4, 4
NUM_SLOTS = 2 * _SPRITE + _SCENE
CLAUSE = np.repeat(np.arange(3), (_SPRITE, _SPRITE, _SCENE))
TEXT_DIM = 32
"""Width of `embed`: a word one-hot, then its clause; at least `len(WORDS) + 3`."""
_ID = {word: index for index, word in enumerate(WORDS)}

EXAMPLES = (
    "a red circle bounces and a blue square drifts left in the meadow",
    "a yellow triangle drifts right behind a wall in the desert, camera still",
    "a sprite circles and a pink cross bounces at night, camera pans right",
    "a green square circles at sea, camera pans left",
)


def sample_prompt(key: Array, scene: world.Scene) -> Int[Array, " slots"]:
    """Says some of what is true of a scene; never where things begin, hills or landmarks."""
    probability = jnp.array([0.8, 0.8, 0.85, 0.85] * 2 + [0.85, 0.85, 0.85, 0.85], jnp.float32)
    said = jax.random.uniform(key, (NUM_SLOTS,)) < probability
    # A direction is said with its verb or not at all.
    said = said.at[jnp.array([3, 7, 11])].set(said[jnp.array([2, 6, 10])])

    def word(words: tuple[str, ...], index: Int[Array, ""]) -> Int[Array, ""]:
        return jnp.asarray([_ID[w] for w in words], jnp.int32)[index]

    slots = []
    for i in range(2):
        own = slice(i * _SPRITE, (i + 1) * _SPRITE)
        motion = scene.motion[i]
        full = jnp.stack([
            word(paint.COLOURS, scene.colour[i]),
            word(paint.SHAPES, scene.shape[i]),
            word(("drifts", "drifts", "bounces", "circles"), motion),
            word(("left", "right", "", ""), motion),
        ])  # fmt: skip
        unsaid = jnp.array([0, _ID[GENERIC], 0, 0], jnp.int32)
        slots.append(jnp.where(scene.sprite_count > i, jnp.where(said[own], full, unsaid), 0))
    full = jnp.stack([
        jnp.where(scene.has_wall, _ID[WALL], 0).astype(jnp.int32),
        word(paint.PLACES, scene.place),
        word(("still", "pans", "pans"), scene.camera),
        word(("", "left", "right"), scene.camera),
    ])  # fmt: skip
    slots.append(jnp.where(said[2 * _SPRITE :], full, 0))
    return jnp.concatenate(slots)


def embed(slots: Int[Array, " slots"]) -> Float[Array, "slots text_dim"]:
    """Text embeddings without parameters: one-hot word, one-hot clause; zeros if not said."""
    word = jax.nn.one_hot(slots, TEXT_DIM, dtype=jnp.float32)
    clause = jax.nn.one_hot(TEXT_DIM - 3 + CLAUSE, TEXT_DIM, dtype=jnp.float32)
    return jnp.where((slots > 0)[:, None], word + clause, 0.0)


def tokenize(text: str) -> Int[np.ndarray, " slots"]:
    """Reads a prompt into slots; upper case, commas and full stops do not matter.

    Raises:
      ValueError: unknown words (all are named, with the vocabulary), no sprite or more than two,
        or something said twice.
    """
    words: list[str] = re.findall(r"[^\s,.;!]+", text.lower())
    known = {*WORDS[1:], *FILLERS, "and"}
    if unknown := [word for word in dict.fromkeys(words) if word not in known]:
        raise ValueError(_unknown_words(unknown, known))
    slots = np.zeros(NUM_SLOTS, np.int32)
    sprite, last_verb_slot = -1, None

    def say(slot: int, word: str) -> None:
        if slots[slot] not in (0, _ID[word]):
            raise ValueError(
                f"the prompt says both {WORDS[slots[slot]]!r} and {word!r} of one thing"
            )
        slots[slot] = _ID[word]

    named = True  # whether the sprite being read already has its noun
    for word in words:
        if word in paint.COLOURS or word in paint.SHAPES or word == GENERIC:
            if named:
                sprite, named = sprite + 1, False
                if sprite > 1:
                    raise ValueError("the prompt has more than two sprites; two is the most")
            if word in paint.COLOURS:
                say(sprite * _SPRITE, word)
            else:
                say(sprite * _SPRITE + 1, word)
                named = True
        elif word in VERBS:
            if sprite < 0:
                raise ValueError(f"{word!r} needs a sprite before it, as in 'a circle {word}'")
            last_verb_slot = sprite * _SPRITE + 2
            say(last_verb_slot, word)
        elif word in CAMERA:
            last_verb_slot = 2 * _SPRITE + 2
            say(last_verb_slot, word)
        elif word in DIRECTIONS:
            if last_verb_slot is None or WORDS[slots[last_verb_slot]] not in ("drifts", "pans"):
                raise ValueError(f"{word!r} needs 'drifts' or 'pans' before it")
            say(last_verb_slot + 1, word)
        elif word == WALL:
            say(2 * _SPRITE, word)
        elif word in paint.PLACES:
            say(2 * _SPRITE + 1, word)
    if sprite < 0:
        raise ValueError(f"the prompt names no sprite; try {EXAMPLES[0]!r}")
    if not named:
        say(sprite * _SPRITE + 1, GENERIC)
    return slots


def detokenize(slots: Int[np.ndarray, " slots"]) -> str:
    """A sentence that `tokenize` reads back into the same slots."""
    said = [WORDS[int(slot)] for slot in slots]
    sprites = [
        " ".join(["a", *filter(None, said[i : i + _SPRITE])]) for i in (0, _SPRITE) if said[i + 1]
    ]
    wall, place, *camera = said[2 * _SPRITE :]
    sentence = " and ".join(sprites)
    sentence += " behind a wall" if wall else ""
    sentence += f" in the {place}" if place else ""
    return sentence + (f", camera {' '.join(filter(None, camera))}" if camera[0] else "")


def vocabulary() -> str:
    """The words a prompt may use, by kind."""
    kinds = {
        "colours": paint.COLOURS,
        "shapes": (*paint.SHAPES, GENERIC),
        "motions": (*world.MOTIONS,),
        "places": paint.PLACES,
        "camera": (*world.CAMERAS,),
        "also": ("and", "behind a wall", *FILLERS),
    }
    return "\n".join(f"  {kind}: {', '.join(words)}" for kind, words in kinds.items())


def _unknown_words(unknown: list[str], known: set[str]) -> str:
    def hint(word: str) -> str:
        close = difflib.get_close_matches(word, sorted(known), n=1)
        return f"{word!r} (did you mean {close[0]!r}?)" if close else repr(word)

    return (
        f"unknown words in the prompt: {', '.join(map(hint, unknown))}. "
        f"The tiny model knows:\n{vocabulary()}"
    )
