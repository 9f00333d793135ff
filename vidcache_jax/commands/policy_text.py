"""One of several policies on the command line: ``name:option=value,option=value``."""

import contextlib
import dataclasses
import io
import re
import typing
from collections.abc import Iterable
from typing import Any

import tyro

from vidcache_jax.cache import POLICIES, CachePolicy
from vidcache_jax.commands.policy_option import FILE_OPTIONS, default_policy, fitted
from vidcache_jax.models.fingerprint import fingerprint
from vidcache_jax.models.video_model import VideoModel


def split_policies(texts: Iterable[str]) -> tuple[str, ...]:
    """Policies as given, apart: ``full,tethercache:tau=0,alpha=1`` are two.

    A comma ends a policy where a name of `POLICIES` follows it, and ``:``, another comma or the
    end; all others are of options.
    """
    names = "|".join(map(re.escape, POLICIES))
    end = re.compile(rf",\s*(?=(?:{names})\s*(?:[:,]|$)|$)")
    return tuple(part.strip() for text in texts for part in end.split(text) if part.strip())


def read_policy(text: str, num_frames: int, model: VideoModel) -> CachePolicy:
    """The policy that, say, ``sliding-window:window_size=21,sink_size=3`` names.

    Options have the names, values and defaults that ``vidcache generate --policy`` has, with
    underscores or hyphens. A full cache whose capacity is not stated gets ``num_frames``, Head
    Forcing without a file of roles those of the model.

    Raises:
      ValueError: the name or an option is unknown, a value is impossible, or the roles are of
        another model; the message has ``text`` and what would be right.
    """
    name, _, options = text.partition(":")
    if name not in POLICIES:
        raise ValueError(f"policy {text!r} is unknown; policies are {', '.join(POLICIES)}")
    default: Any = default_policy(name)
    types = typing.get_type_hints(type(default))
    fields = [field.name for field in dataclasses.fields(default) if field.init]
    given = {}
    for part in filter(None, options.split(",")):
        option, equals, value = (each.strip() for each in part.partition("="))
        option = option.replace("-", "_")
        if not (equals and value):
            raise ValueError(f"policy {text!r}: {part!r} is not of the form option=value")
        if option not in fields:
            raise ValueError(
                f"policy {text!r}: {name} has no option {option!r}, it has {', '.join(fields)}"
            )
        try:
            given[option] = _value(types[option], value)
        except SystemExit as refusal:
            kind = types[option].__name__ if isinstance(types[option], type) else types[option]
            raise ValueError(f"policy {text!r}: {option}={value} is no {kind}") from refusal
    try:
        policy = dataclasses.replace(default, **given)
        policy = fitted(policy, "capacity" in given, num_frames, model.head_roles)
        policy.check_model(lambda: fingerprint(model.params))
    except ValueError as error:
        raise ValueError(f"policy {text!r}: {error}") from error
    return policy


def _value(kind: Any, text: str) -> Any:
    """A value as the parser of all other options reads it; without its own printed refusal."""
    with contextlib.redirect_stderr(io.StringIO()):
        return tyro.cli(kind, args=[text], registry=FILE_OPTIONS)
