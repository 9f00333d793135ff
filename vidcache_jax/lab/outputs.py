"""What a comparison leaves in its folder, made from the finished runs at any time."""

from collections.abc import Sequence
from pathlib import Path

from vidcache_jax.lab import report, result, side_by_side, vbench
from vidcache_jax.lab.comparison import Comparison, Run, digest
from vidcache_jax.lab.figures import finished, write_tables
from vidcache_jax.lab.runs import Failure, is_finished, run_folder
from vidcache_jax.sampling.output_file import slug, write_text


def write_outputs(
    comparison: Comparison,
    folder: Path,
    failures: Sequence[Failure] = (),
    *,
    with_videos: bool = True,
) -> Path:
    """Tables, pictures, videos side by side, and the report, whose path is returned.

    Videos and pictures that are there already are not made again.

    Args:
      failures: runs that could not be made, to be told.
      with_videos: False leaves the side-by-side videos out, which take longest.

    Raises:
      ValueError: a result is damaged. OSError: something cannot be written.
    """
    runs = finished(comparison, folder)
    write_tables(runs, folder)
    pictures: dict[str, Path] = {}
    for prompt in comparison.prompts:
        for seed in comparison.seeds:
            beside = [
                run
                for run in comparison.runs
                if run.prompt == prompt and run.seed == seed and is_finished(run, folder)
            ]
            if not beside:
                continue
            pictures[f"“{prompt}”, seed {seed}"] = _picture(beside, folder)
            if with_videos:
                _video(beside, comparison, folder)
    found = {label: vbench.read_scores(folder, label) for label in comparison.policies}
    scores = {label: each for label, each in found.items() if each is not None}
    path = folder / "report.html"
    write_text(path, report.page(comparison, runs, pictures, scores, failures))
    return path


def _picture(runs: Sequence[Run], folder: Path) -> Path:
    path = folder / "pictures" / f"{_name(runs)}.png"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        sheets = {run.label: run_folder(run, folder) / result.SHEET for run in runs}
        side_by_side.write_picture(sheets, path)
    return path


def _video(runs: Sequence[Run], comparison: Comparison, folder: Path) -> None:
    path = folder / "videos" / f"{_name(runs)}.mp4"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        videos = {run.label: run_folder(run, folder) / result.VIDEO for run in runs}
        fps = comparison.model.frames_per_second
        side_by_side.write_video(videos, path, fps=fps, title=runs[0].prompt)


def _name(runs: Sequence[Run]) -> str:
    """Of the runs that are shown: with one more it is another file."""
    shown = digest([[run.label, run.name] for run in runs])
    return f"{slug(runs[0].prompt)}-seed{runs[0].seed}-{shown}"
