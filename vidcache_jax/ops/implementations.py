"""The choice of an operation's implementation by name."""

from collections.abc import Mapping
from typing import TypeVar

Implementation = TypeVar("Implementation")


def named(what: str, implementations: Mapping[str, Implementation], name: str) -> Implementation:
    """The implementation of that name.

    Raises:
      ValueError: there is none; the message lists those there are.
    """
    if name not in implementations:
        raise ValueError(f"no {what} implementation {name!r}; there are {[*implementations]}")
    return implementations[name]
