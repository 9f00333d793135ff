"""``--policy NAME`` with that policy's hyper-parameters as options of their own."""

import dataclasses
from typing import Any

import tyro

from vidcache_jax.cache import POLICIES, CachePolicy, FullCache, SlidingWindow

DEFAULT_POLICY = "sliding-window"


def take_policy_name(argv: list[str]) -> tuple[str, list[str]]:
    """Takes ``--policy NAME`` or ``--policy=NAME`` out of the arguments.

    Raises:
      ValueError: the name is missing or unknown; the message lists the policies.
    """
    rest, name = [], DEFAULT_POLICY
    arguments = iter(argv)
    for argument in arguments:
        if argument == "--policy":
            name = next(arguments, "")
        elif argument.startswith("--policy="):
            name = argument.removeprefix("--policy=")
        else:
            rest.append(argument)
    if name not in POLICIES:
        raise ValueError(f"--policy {name!r} is unknown; policies are {', '.join(POLICIES)}")
    return name, rest


def default_policy(name: str) -> CachePolicy:
    """A policy of the command line when nothing is said of its hyper-parameters."""
    policy: Any = POLICIES[name]
    # The CLI's window keeps the first frames: without a sink a long video forgets how it began.
    return policy(sink_size=3) if policy is SlidingWindow else policy()


def with_policy_options(args_type: type, name: str) -> type:
    """The command's argument dataclass, extended by the options of one policy."""
    policy: Any = POLICIES[name]
    default = default_policy(name)
    annotated = tyro.conf.OmitArgPrefixes[policy]
    return dataclasses.make_dataclass(
        args_type.__name__,
        [("policy", annotated, dataclasses.field(default=default))],
        bases=(args_type,),
        frozen=True,
        kw_only=True,
    )


def fitted(policy: CachePolicy, given: list[str], num_frames: int) -> CachePolicy:
    """A full cache whose capacity was not stated gets the capacity that the video needs."""
    if isinstance(policy, FullCache) and not any(a.startswith("--capacity") for a in given):
        return FullCache(capacity=num_frames)
    return policy
