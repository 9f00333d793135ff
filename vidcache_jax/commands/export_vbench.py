"""A comparison's videos laid out for VBench, and its scores read back."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from vidcache_jax.commands.compare import comparison_of, read_settings
from vidcache_jax.lab import vbench
from vidcache_jax.lab.comparison import read_prompts
from vidcache_jax.lab.outputs import write_outputs


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportArgs:
    """Lay out the videos of a comparison as VBench and VBench-Long expect them.

    Writes COMPARISON/vbench/POLICY with videos, prompts.txt, prompts.json and export.json. Let
    VBench write its results anywhere below that folder, say to its folder results, and call this
    again with --read-back: the report then has the scores.
    """

    comparison: Annotated[Path, tyro.conf.Positional]
    """The folder that vidcache compare wrote."""
    originals: Path | None = None
    """Prompts (.txt, one a line) to be scored, if the comparison's are extensions of them."""
    read_back: bool = False
    """Read VBench's *_eval_results.json into the report instead of exporting."""


def main(argv: list[str]) -> int:
    """Runs the command; returns the exit status."""
    console = Console(stderr=True)
    say = lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True)
    args = tyro.cli(ExportArgs, args=argv, prog="vidcache export-vbench")
    try:
        comparison = comparison_of(read_settings(args.comparison))
        if args.read_back:
            say(f"wrote {write_outputs(comparison, args.comparison)}")
            return 0
        originals = None if args.originals is None else read_prompts((str(args.originals),))
        for folder in vbench.export(comparison, args.comparison, originals):
            say(f"wrote {folder}")
    except (ValueError, OSError) as error:
        console.print(
            f"vidcache export-vbench: {error}", style="red", markup=False, highlight=False
        )
        return 2
    return 0
