"""Several policies on the same prompts and seeds, measured and shown."""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

from vidcache_jax.commands.compilation_cache import enable_compilation_cache
from vidcache_jax.commands.model_options import ModelOptions, opened_by, scale_of
from vidcache_jax.commands.policy_text import read_policy, split_policies
from vidcache_jax.lab.comparison import Comparison, Run, read_prompts
from vidcache_jax.lab.failures import Failure, write_failures
from vidcache_jax.lab.outputs import write_outputs
from vidcache_jax.lab.runs import run_all, unfinished
from vidcache_jax.sampling.output_file import write_text
from vidcache_jax.sampling.session import chunks_for
from vidcache_jax.sharding import ONE_DEVICE

SETTINGS = "comparison.json"
SPRITE_MODELS = ("tiny",)
"""Models of the sprite world, of whose videos the truth is known."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareArgs(ModelOptions):
    """Compare cache policies: which drifts, which remembers, what each costs.

    Makes a video for each policy, prompt and seed, with the same noise for all policies, and writes
    a folder of videos side by side, pictures, tables and a report to open in a browser. What is
    finished is kept: the same command continues after an interruption, and goes on where it was
    when prompts, seeds or policies are added.
    """

    policies: tuple[str, ...] = ("sliding-window", "tethercache")
    """Each NAME or NAME:OPTION=VALUE,OPTION=VALUE, as in sliding-window:window_size=21,sink_size=0,
    with spaces or commas between them. The options are those of vidcache generate --policy NAME
    --help."""
    prompts: tuple[str, ...] = (
        "a red circle drifts left in the meadow, camera still",
        "a green square bounces at sea, camera still",
    )
    """Texts, or files ending in .txt with one prompt a line."""
    seeds: tuple[int, ...] = (0,)
    """Of the noise, the same for all policies."""
    seconds: float = 60.0
    """Length of each video; rounded up to whole chunks."""
    out: Path = Path("comparison")
    """Folder for everything; made if it is not there."""


def main(argv: list[str]) -> int:
    """Runs the command; 0 if every video was made, 1 if some could not be."""
    console = Console(stderr=True)
    args = tyro.cli(CompareArgs, args=argv, prog="vidcache compare")
    try:
        enable_compilation_cache(args.compilation_cache)
        comparison = comparison_of(args)
        return compare(comparison, args, console)
    except (ValueError, OSError) as error:
        console.print(f"vidcache compare: {error}", style="red", markup=False, highlight=False)
        return 2


def comparison_of(args: CompareArgs) -> Comparison:
    """Raises ValueError if a policy or the model is unknown, or there are no prompts."""
    model = opened_by(args).load(ONE_DEVICE)
    labels = split_policies(args.policies)
    num_frames = chunks_for(args.seconds, model) * model.rollout.frames_per_chunk
    return Comparison(
        model=model,
        policies={text: read_policy(text, num_frames, model) for text in labels},
        prompts=read_prompts(args.prompts),
        seeds=args.seeds,
        seconds=args.seconds,
        scale=scale_of(args, model),
        of_sprites=args.checkpoint is None and args.model in SPRITE_MODELS,
    )


def compare(comparison: Comparison, args: CompareArgs, console: Console) -> int:
    """Makes what is missing and writes the report; returns the exit status.

    Raises:
      ValueError: a result of an earlier run is damaged. OSError: the folder cannot be written.
    """
    folder = args.out
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / SETTINGS, json.dumps(_kept(comparison, args), indent=1, ensure_ascii=False))
    todo = unfinished(comparison, folder)
    chunks = chunks_for(comparison.seconds, comparison.model)
    say = lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True)
    each = "1 chunk" if chunks == 1 else f"{chunks} chunks"
    say(f"{len(todo)} of {len(comparison.runs)} videos are to be made, {each} each")
    failures: list[Failure] = []
    is_complete, began = True, time.perf_counter()
    with Progress(*_columns(), console=console) as progress:
        task = progress.add_task("starting", total=len(todo) * chunks)

        def on_chunk(run: Run) -> None:
            what = f"{run.label}, seed {run.seed}"
            progress.update(task, advance=1, description=what.replace("[", r"\["))

        told: set[str] = set()

        def on_failure(failure: Failure) -> None:
            progress.update(task, advance=chunks)
            failures.append(failure)
            # One bad prompt fails under every policy and seed, for one reason.
            if failure.reason not in told:
                who = f"{failure.run.label} on {failure.run.prompt!r}"
                say(f"could not be made: {who}: {failure.reason}")
            told.add(failure.reason)

        try:
            run_all(comparison, folder, on_chunk=on_chunk, on_failure=on_failure)
        except KeyboardInterrupt:
            is_complete = False
    left = len(unfinished(comparison, folder)) - len(failures)
    if not is_complete:
        say(f"interrupted; {left} videos are missing, the same command goes on")
    write_failures(failures, folder)
    try:
        report = write_outputs(comparison, folder, failures, with_videos=is_complete)
    except KeyboardInterrupt:
        say("interrupted while showing what was made; the same command goes on")
        return 130
    say(f"wrote {report} after {time.perf_counter() - began:.1f} s")
    return 130 if not is_complete else 1 if failures else 0


def read_settings(folder: Path) -> CompareArgs:
    """The arguments with which a folder was made.

    Raises:
      ValueError: the folder holds no comparison.
    """
    path = folder / SETTINGS
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{folder} holds no comparison: cannot read {path.name}") from error
    tuples = {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
    read: dict[str, Any] = {**given, **tuples}
    if read.get("checkpoint") is not None:
        read["checkpoint"] = Path(read["checkpoint"])
    try:
        return CompareArgs(**read, out=folder)
    except TypeError as error:
        raise ValueError(f"{path} is of another version of vidcache_jax: {error}") from error


def _kept(comparison: Comparison, args: CompareArgs) -> dict[str, Any]:
    """The settings as given, so that other commands can find the runs again."""
    # Where things lie on this machine is no setting, but for the model itself.
    places = ("out", "compilation_cache", "embedding_cache")
    given = {name: x for name, x in dataclasses.asdict(args).items() if name not in places}
    checkpoint = None if args.checkpoint is None else str(args.checkpoint.absolute())
    return {**given, "prompts": comparison.prompts, "checkpoint": checkpoint}


def _columns() -> list[ProgressColumn]:
    return [
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("chunk {task.completed}/{task.total}"),
        TimeRemainingColumn(),
    ]
