"""Runs a comparison: each run's result appears whole in a folder of its own, or not at all."""

import contextlib
import dataclasses
import importlib.metadata
import platform
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

import vidcache_jax
from vidcache_jax.lab import result
from vidcache_jax.lab.comparison import Comparison, Run
from vidcache_jax.lab.failures import Failure
from vidcache_jax.lab.result import Cost, Result
from vidcache_jax.metrics.table import gauges
from vidcache_jax.models.video_model import VideoModel
from vidcache_jax.planning.memory import check_memory, memory_accounted
from vidcache_jax.sampling.contact_sheet import ContactSheet
from vidcache_jax.sampling.output_file import folder_aside
from vidcache_jax.sampling.prompts import embed_all, with_texts
from vidcache_jax.sampling.rollout import Rollout
from vidcache_jax.sampling.session import Session, chunks_for
from vidcache_jax.sampling.writer import VideoWriter

SHEET_COLUMNS = 8


def run_all(
    comparison: Comparison,
    folder: Path,
    *,
    on_chunk: Callable[[Run], None] = lambda run: None,
    on_failure: Callable[[Failure], None] = lambda failure: None,
) -> tuple[Failure, ...]:
    """Makes every run that is not finished; returns those that cannot be made.

    What is finished is kept whatever stops the rest, so calling this again continues. A prompt or
    policy that fails costs its own runs only.

    Args:
      on_chunk: told of every chunk that is made.
      on_failure: told of every run that cannot be made, when it turns out.

    Raises:
      CheckpointError: the text encoder is damaged. OSError: the folder cannot be written.
    """
    failures, todo = [], unfinished(comparison, folder)
    texts = embed_all(comparison.model, [run.prompt for run in todo])
    comparison = dataclasses.replace(comparison, model=with_texts(comparison.model, texts))
    for run in todo:
        # By another process, say: the settings are the same, so the result is.
        if is_finished(run, folder):
            continue
        try:
            _make(run, comparison, folder, on_chunk)
        except OSError:
            raise
        except Exception as error:  # whatever one policy does must not cost the others' results
            failures.append(Failure(run, str(error) or type(error).__name__))
            on_failure(failures[-1])
    return tuple(failures)


def unfinished(comparison: Comparison, folder: Path) -> list[Run]:
    """What is to be made, once: two labels may name one policy, whose runs are then the same."""
    by_name: dict[str, Run] = {}
    for run in comparison.runs:
        if not is_finished(run, folder):
            by_name.setdefault(run.name, run)
    return list(by_name.values())


def is_finished(run: Run, folder: Path) -> bool:
    return (run_folder(run, folder) / result.FILE).is_file()


def run_folder(run: Run, folder: Path) -> Path:
    return folder / "runs" / run.name


def _make(run: Run, comparison: Comparison, folder: Path, on_chunk: Callable[[Run], None]) -> None:
    """Makes one run aside and moves it, whole, to its name."""
    model = comparison.model
    rollout = Rollout(model.config, model.rollout, run.policy)
    check_memory(model, rollout, 1)
    final = run_folder(run, folder)
    final.parent.mkdir(parents=True, exist_ok=True)
    with folder_aside(final) as partial:
        with memory_accounted(model, rollout, 1):
            _measure(run, comparison, partial, on_chunk).write(partial)
        partial.rename(final)


def _measure(
    run: Run, comparison: Comparison, folder: Path, on_chunk: Callable[[Run], None]
) -> Result:
    model = comparison.model
    gauging = gauges(run.prompt, of_sprites=comparison.of_sprites)
    session = Session(model, run.policy, prompt=run.prompt, seed=run.seed)
    chunks = session.generate(run.seconds)
    num_latents = chunks_for(run.seconds, model) * model.rollout.frames_per_chunk
    rows, frames, times = [], [], []
    with contextlib.ExitStack() as files:
        video = VideoWriter(
            folder / result.VIDEO,
            fps=model.frames_per_second,
            scale=run.scale,
            title=run.prompt,
            comment=f"vidcache_jax {vidcache_jax.__version__}: {run.policy}, seed {run.seed}",
        )
        sheet = ContactSheet(
            folder / result.SHEET,
            total_frames=model.codec.num_pixel_frames(num_latents),
            fps=model.frames_per_second,
            columns=SHEET_COLUMNS,
            rows=1,
            scale=max(1, run.scale // 2),
        )
        sinks = [files.enter_context(sink) for sink in (video, sheet)]
        while True:
            began = time.perf_counter()
            chunk = next(chunks, None)
            if chunk is None:
                break
            times.append(time.perf_counter() - began)
            frames.append(len(chunk))
            latents = session.latents
            row: dict[str, float] = {}
            for gauge in gauging:
                row.update(gauge.update(chunk, latents))
            rows.append(row)
            for sink in sinks:
                sink.write(chunk)
            on_chunk(run)
    return Result(
        settings=run.settings,
        frames_per_second=model.frames_per_second,
        frames=np.array(frames),
        series={name: np.array([row[name] for row in rows]) for name in rows[0]},
        cost=Cost(
            cache_bytes=session.cache_nbytes,
            first_chunk=times[0],
            chunk=float(np.median(times[1:])) if times[1:] else float("nan"),
        ),
        machine=machine(model),
    )


def machine(model: VideoModel) -> dict[str, str]:
    """What the figures were made with."""
    device = jax.devices()[0]
    return {
        "device": f"{jax.device_count()} x {device.device_kind}",
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "numpy")},
        "vidcache_jax": vidcache_jax.__version__,
        "model": model.name,
    }
