"""What a comparison leaves in its folder, made from the finished runs at any time."""

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from vidcache_jax.lab import report, result, side_by_side, vbench
from vidcache_jax.lab.comparison import Comparison, Run, digest
from vidcache_jax.lab.failures import Failure
from vidcache_jax.lab.figures import finished, write_tables
from vidcache_jax.lab.runs import is_finished, run_folder
from vidcache_jax.sampling.output_file import folder_aside, slug, write_text


def write_outputs(
    comparison: Comparison,
    folder: Path,
    failures: Sequence[Failure] = (),
    *,
    with_videos: bool = True,
) -> Path:
    """Tables, pictures, the report, whose path is returned, and then videos side by side.

    Videos and pictures that are there already are not made again; those of fewer or other policies
    are removed when the new one is there. Nothing is lost to Ctrl-C, and nothing half-made stays.

    Args:
      failures: runs that could not be made, to be told.
      with_videos: False leaves the side-by-side videos out, which take longest.

    Raises:
      ValueError: a result is damaged. OSError: something cannot be written.
    """
    runs = finished(comparison, folder)
    write_tables(runs, folder)
    shown = _shown(comparison, folder)
    pictures = {
        f"“{beside[0].prompt}”, seed {beside[0].seed}": _picture(beside, folder) for beside in shown
    }
    scores, unread = vbench.read_all(comparison, folder)
    path = folder / "report.html"
    write_text(path, report.page(comparison, runs, pictures, scores, failures, unread))
    if with_videos:
        for beside in shown:
            _video(beside, comparison, folder)
    return path


def _shown(comparison: Comparison, folder: Path) -> list[list[Run]]:
    """Finished runs that stand side by side: of one prompt and seed, in the order of policies."""
    groups: dict[tuple[str, int], list[Run]] = {}
    for run in comparison.runs:
        if is_finished(run, folder):
            groups.setdefault((run.prompt, run.seed), []).append(run)
    return list(groups.values())


def _picture(runs: Sequence[Run], folder: Path) -> Path:
    path = folder / "pictures" / f"{_name(runs)}.png"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        sheets = {run.label: run_folder(run, folder) / result.SHEET for run in runs}
        side_by_side.write_picture(sheets, path)
    _remove_others(runs, path)
    return path


def _video(runs: Sequence[Run], comparison: Comparison, folder: Path) -> None:
    path = folder / "videos" / f"{_name(runs)}.mp4"
    if not path.exists():
        videos = {run.label: run_folder(run, folder) / result.VIDEO for run in runs}
        fps = comparison.model.frames_per_second
        # Aside: a writer publishes what it has when it is interrupted, and this would be taken
        # for the whole.
        path.parent.mkdir(exist_ok=True)
        with folder_aside(path) as aside:
            side_by_side.write_video(videos, aside / path.name, fps=fps, title=runs[0].prompt)
            os.replace(aside / path.name, path)
    _remove_others(runs, path)


def _remove_others(runs: Sequence[Run], path: Path) -> None:
    """What shows the same prompt and seed under fewer or other policies."""
    for other in path.parent.glob(f"{glob.escape(_stem(runs[0]))}-{'?' * 8}{path.suffix}"):
        if other != path:
            other.unlink()


def _name(runs: Sequence[Run]) -> str:
    """Of the runs that are shown: with one more it is another file."""
    return f"{_stem(runs[0])}-{digest([[run.label, run.name] for run in runs])}"


def _stem(run: Run) -> str:
    # Prompts may begin alike, or have no letter that a slug keeps.
    return f"{slug(run.prompt)}-{digest(run.prompt)}-seed{run.seed}"
