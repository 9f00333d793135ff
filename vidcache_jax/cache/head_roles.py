"""Which role each attention head of a model plays, as data that a file can hold.

Head Forcing (arXiv 2605.14487) finds three: *local* heads look at the chunk being made, *anchor*
heads at the first frame of the video, *memory* heads at what lies between.
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

ROLES = ("local", "anchor", "memory")
"""A role's place is its number in a cache."""
LOCAL, ANCHOR, MEMORY = range(3)


@dataclasses.dataclass(frozen=True)
class HeadRoles:
    """The role of every head of a model.

    Attributes:
      table: a row of words from `ROLES` per layer, a word per head.
      fingerprint: of the parameters that were profiled (`models.fingerprint`), None if the table
        was not made from a model.

    Raises:
      ValueError: no layers, rows of unequal length, or another word.
    """

    table: tuple[tuple[str, ...], ...]
    fingerprint: str | None = None

    def __post_init__(self):
        if not self.table or not self.table[0]:
            raise ValueError("a role table needs at least one layer and one head")
        lengths = [len(row) for row in self.table]
        if len(set(lengths)) > 1:
            raise ValueError(f"the layers of a role table have unequal numbers of heads: {lengths}")
        if unknown := sorted({role for row in self.table for role in row} - {*ROLES}):
            raise ValueError(f"unknown roles {unknown} in a role table; there are {[*ROLES]}")

    @classmethod
    def uniform(
        cls, role: str, num_layers: int, num_heads: int, fingerprint: str | None = None
    ) -> "HeadRoles":
        """Every head plays the same role (the paper's *uniform memory* with ``"memory"``)."""
        return cls(((role,) * num_heads,) * num_layers, fingerprint)

    @classmethod
    def from_numbers(
        cls, numbers: Int[np.ndarray, "L N"], fingerprint: str | None = None
    ) -> "HeadRoles":
        return cls(tuple(tuple(ROLES[n] for n in row) for row in numbers.tolist()), fingerprint)

    @property
    def shape(self) -> tuple[int, int]:
        """(layers, heads)."""
        return len(self.table), len(self.table[0])

    @property
    def numbers(self) -> Int[np.ndarray, "L N"]:
        return np.array([[ROLES.index(role) for role in row] for row in self.table], np.int32)

    def replaced(self, old: str, new: str) -> "HeadRoles":
        """Heads of one role play another (the paper's *local + memory*, *anchor + memory*)."""
        rows = (tuple(new if role == old else role for role in row) for row in self.table)
        return dataclasses.replace(self, table=tuple(rows))

    def shuffled(self, seed: int) -> "HeadRoles":
        """The same roles, dealt to heads at random over the model (the paper's *random roles*)."""
        mixed = np.random.default_rng(seed).permutation(self.numbers.ravel())
        return HeadRoles.from_numbers(mixed.reshape(self.shape), self.fingerprint)

    def check_model(self, fingerprint: str) -> None:
        """Refuses a table that was made from other parameters.

        Raises:
          ValueError: the fingerprints differ. A table without one serves any model of its shape.
        """
        if self.fingerprint not in (None, fingerprint):
            raise ValueError(
                f"the role table was made for a model with fingerprint {self.fingerprint}, this "
                f"one has {fingerprint}: profile this model with `vidcache profile-heads`"
            )

    def save(self, path: str | os.PathLike[str], about: dict[str, Any]) -> None:
        """Writes JSON: the roles, the fingerprint, and whatever ``about`` says of their making."""
        rows = [" ".join(row) for row in self.table]
        path = Path(path)
        partial = path.with_name(f".{path.name}.partial")
        text = json.dumps({"roles": rows, "fingerprint": self.fingerprint, **about}, indent=1)
        partial.write_text(text + "\n")
        partial.replace(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "HeadRoles":
        """Reads what `save` or ``vidcache profile-heads`` wrote.

        Raises:
          OSError: the file cannot be read.
          ValueError: it holds no role table; the message names the file.
        """
        try:
            content = json.loads(Path(path).read_text())
            rows = tuple(tuple(row.split()) for row in content["roles"])
            return cls(rows, content["fingerprint"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            why = f"no {error}" if isinstance(error, KeyError) else error
            raise ValueError(f"{path} holds no role table: {why}") from error
