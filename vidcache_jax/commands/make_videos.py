"""A job on the screen: how far all of its videos are, and what became of them."""

import time

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from vidcache_jax.planning.memory import memory_accounted
from vidcache_jax.sampling.job import Failure, Job, open_job, run_job
from vidcache_jax.sharding import DATA


def make_videos(job: Job, console: Console) -> int:
    """Makes the videos that are missing; returns the exit status.

    Of several processes the first speaks for all.

    0 if every prompt has its video, 1 if some could not be read, 130 after Ctrl-C.

    Raises:
      ValueError: the job is impossible, or memory is lacking. OSError: the folder or a video
        cannot be written.
    """
    console = console if jax.process_index() == 0 else Console(quiet=True)
    say = lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True)
    todo, count = open_job(job), len(job.prompts)
    say(f"{len(todo)} of {count} videos are to be made, {job.num_chunks} chunks each")
    failures: list[Failure] = []
    is_complete, began = True, time.perf_counter()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("chunk {task.completed}/{task.total}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("compiling", total=len(todo) * job.num_chunks)

        def on_chunk(num_videos: int) -> None:
            progress.update(task, advance=num_videos, description="generating")

        def on_failure(failure: Failure) -> None:
            failures.append(failure)
            progress.update(task, advance=job.num_chunks)

        try:
            with memory_accounted(job.model, job.rollout, job.rollout.layout.size(DATA)):
                run_job(job, todo, on_chunk=on_chunk, on_failure=on_failure)
        except KeyboardInterrupt:
            is_complete = False
    for failure in failures:
        say(f"no video of prompt {failure.number}, {job.prompts[failure.number]!r}: "
            f"{failure.reason}")  # fmt: skip
    if not is_complete:
        say("interrupted; the same command goes on")
        return 130
    made = len(todo) - len(failures)
    say(f"wrote {made} videos to {job.folder} in {time.perf_counter() - began:.1f} s")
    return 1 if failures else 0
