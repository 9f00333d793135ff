"""The ``vidcache`` command. The only module that parses arguments, prints and exits."""

import sys

from vidcache_jax.commands import bench, compare, export_vbench, generate, plan, profile_heads

COMMANDS = {
    "generate": generate,
    "compare": compare,
    "bench": bench,
    "plan": plan,
    "profile-heads": profile_heads,
    "export-vbench": export_vbench,
}

USAGE = "usage: vidcache COMMAND [options]\n\ncommands:\n" + "\n".join(
    f"  {name:15}{(module.__doc__ or '').splitlines()[0]}" for name, module in COMMANDS.items()
)


def main(argv: list[str] | None = None) -> int:
    """Runs a command; returns the process's exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(f"{USAGE}\n\nvidcache COMMAND --help tells a command's options.")
        return 0
    if argv[0] not in COMMANDS:
        print(f"vidcache: no command {argv[0]!r}\n\n{USAGE}", file=sys.stderr)
        return 2
    return COMMANDS[argv[0]].main(argv[1:])
