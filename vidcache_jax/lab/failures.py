"""Runs that could not be made, kept for whoever writes the report again."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from vidcache_jax.lab.comparison import Comparison, Run
from vidcache_jax.sampling.output_file import write_text

FILE = "failures.json"


@dataclasses.dataclass(frozen=True)
class Failure:
    """A run that could not be made, and why."""

    run: Run
    reason: str


def write_failures(failures: Sequence[Failure], folder: Path) -> None:
    """Those of the latest attempt; runs that failed before are tried again, so no others count."""
    reasons = {failure.run.name: failure.reason for failure in failures}
    write_text(folder / FILE, json.dumps(reasons, indent=1, ensure_ascii=False))


def read_failures(comparison: Comparison, folder: Path) -> tuple[Failure, ...]:
    """What `write_failures` has left of the comparison's runs; nothing if there is no such file.

    Raises:
      ValueError: the file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return ()
    try:
        reasons = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); remove it") from error
    return tuple(
        Failure(run, str(reasons[run.name])) for run in comparison.runs if run.name in reasons
    )
