"""A comparison's videos laid out for VBench, and its scores read back."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from vidcache_jax.commands.compare import comparison_of, read_settings
from vidcache_jax.lab import vbench
from vidcache_jax.lab.comparison import Comparison, read_prompts
from vidcache_jax.lab.failures import read_failures
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
            return read_back(comparison, args.comparison, say)
        originals = None if args.originals is None else read_prompts((str(args.originals),))
        for folder in vbench.export(comparison, args.comparison, originals):
            say(f"wrote {folder}")
            if names := vbench.shortened(folder):
                say(
                    f"warning: some prompts cannot be names of files, so {len(names)} videos have "
                    f"short ones, such as {names[0]!r}; give VBench prompts.json as --prompt_file. "
                    "VBench-Long takes none and would score the short names"
                )
    except (ValueError, OSError) as error:
        console.print(
            f"vidcache export-vbench: {error}", style="red", markup=False, highlight=False
        )
        return 2
    return 0


def read_back(comparison: Comparison, folder: Path, say: Callable[[str], None]) -> int:
    """Writes the report again, with VBench's scores; 1 if there are none, 2 if some are damaged.

    Raises:
      ValueError: a result of the comparison is damaged. OSError: the report cannot be written.
    """
    report = write_outputs(comparison, folder, read_failures(comparison, folder), with_videos=False)
    scores, unread = vbench.read_all(comparison, folder)
    for reason in unread:
        say(f"could not be read: {reason}")
    if scores:
        say(f"wrote {report} with VBench's scores of {', '.join(scores)}")
    elif not unread:
        say(f"no {vbench.RESULTS} was found below {folder / 'vbench'}; the report has no scores")
    return 2 if unread else 0 if scores else 1
