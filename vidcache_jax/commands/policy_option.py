"""``--policy NAME`` with that policy's hyper-parameters as options of their own."""

import dataclasses
from typing import Any

import tyro

from vidcache_jax.cache import (
    POLICIES,
    CachePolicy,
    FullCache,
    HeadForcing,
    HeadRoles,
    SlidingWindow,
)

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
    # ISPA's base is a choice of policies; here it is the default's, whose options are its own.
    annotated = tyro.conf.OmitArgPrefixes[tyro.conf.AvoidSubcommands[policy]]
    return dataclasses.make_dataclass(
        args_type.__name__,
        [("policy", annotated, dataclasses.field(default=default))],
        bases=(args_type,),
        frozen=True,
        kw_only=True,
    )


FILE_OPTIONS = tyro.constructors.ConstructorRegistry()
"""Fields of policies that are read from a file: ``--roles FILE``."""


@FILE_OPTIONS.primitive_rule
def _roles_from_file(
    info: tyro.constructors.PrimitiveTypeInfo,
) -> tyro.constructors.PrimitiveConstructorSpec | None:
    if info.type != HeadRoles | None:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="FILE",
        instance_from_str=lambda paths: HeadRoles.load(paths[0]),
        is_instance=lambda value: value is None or isinstance(value, HeadRoles),
        str_from_instance=lambda _: ["of the model"],
    )


def states_capacity(arguments: list[str]) -> bool:
    return any(option.startswith("--capacity") for option in arguments)


def fitted(
    policy: CachePolicy, states_capacity: bool, num_frames: int, roles: HeadRoles | None
) -> CachePolicy:
    """Fills in what was not stated: a full cache's capacity, the roles of the model's heads."""
    if isinstance(policy, FullCache) and not states_capacity:
        return FullCache(capacity=num_frames)
    if isinstance(policy, HeadForcing):
        return dataclasses.replace(policy, roles=policy.roles or roles)
    return policy
