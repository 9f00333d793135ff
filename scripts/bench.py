"""Measures what the README says of the built-in model; prints one table.

    python scripts/bench.py                                # everything, some minutes on two cores
    python scripts/bench.py --policies sliding-window --no-runs

Definitions. A *frame* is a pixel frame. A *chunk* is timed from its dispatch to its uint8 frames
on the host: noise, denoise passes, commit pass, decoding; no mp4. *Chunk time* at chunk c is the
median over the ten chunks before and after c; the ratio compares two places in one run.
*Compilations* counts programs compiled after the first chunk. *Cache-sized copies* counts copy
instructions in the optimised HLO of the chunk program whose result is as large as a cache buffer.
*Wall time* of a run is that of the whole process, imports, compilation and mp4 included.
*Peak memory* is the largest resident size of a process that made one video.
"""

import dataclasses
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import tyro
from rich.console import Console
from rich.table import Table

import vidcache_jax as vj
from vidcache_jax.testing import cache_sized_copies

PROMPT = "a red circle bounces and a blue square drifts left in the meadow"
COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
EARLY, LATE, AROUND = 20, 200, 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args:
    """What to measure."""

    policies: tuple[str, ...] = tuple(vj.POLICIES)
    """Names of policies, each with its defaults; a full cache is given the length of the run."""
    runs: bool = True
    """Also time and weigh whole runs of `vidcache generate`."""


def main(args: Args) -> None:
    table = Table("what", "policy", "measured", title=_machine())
    for name in args.policies:
        for what, measured in measure_chunks(name):
            table.add_row(what, name, measured)
    if args.runs:
        for what, measured in measure_runs():
            table.add_row(what, "sliding-window", measured)
    Console(width=110).print(table)


def policy_for(name: str, model: vj.VideoModel) -> vj.CachePolicy:
    """The policy's defaults, with room for the run where a policy needs it."""
    num_frames = (LATE + AROUND) * vj.RolloutConfig().frames_per_chunk
    if name == "head-forcing":
        return vj.HeadForcing(model.head_roles)
    return vj.FullCache(capacity=num_frames) if name == "full" else vj.POLICIES[name]()


def measure_chunks(name: str) -> list[tuple[str, str]]:
    """Compilations, chunk times and copies of a run of `LATE + AROUND` chunks."""
    compiled: list[float] = []

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if event == COMPILE_EVENT:
            compiled.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    model = vj.load_model("tiny")
    session = vj.Session(model, policy_for(name, model), prompt=PROMPT)
    num_chunks = LATE + AROUND
    seconds = num_chunks * model.rollout.frames_per_chunk / model.frames_per_second
    times, after_first, start = [], 0, time.perf_counter()
    for frames in session.generate(seconds):
        times.append(time.perf_counter() - start)
        if len(times) == 1:
            after_first, frames_per_chunk = len(compiled), len(frames)
        start = time.perf_counter()
    jax.monitoring.clear_event_listeners()
    median = lambda centre: statistics.median(times[centre - AROUND : centre + AROUND])
    program = session.compiled_chunk()
    memory = program.memory_analysis()
    donated = "unknown" if memory is None else f"{memory.alias_size_in_bytes / 2**20:.2f} MiB"
    copies = cache_sized_copies(program.as_text(), session.abstract_cache())
    return [
        (f"compilations after the first of {len(times)} chunks", str(len(compiled) - after_first)),
        (f"chunk time at {EARLY}", f"{1e3 * median(EARLY):.1f} ms"),
        (f"chunk time at {LATE} / at {EARLY}", f"{median(LATE) / median(EARLY):.3f}"),
        ("frames a second", f"{frames_per_chunk / statistics.median(times[1:]):.0f}"),
        ("cache", f"{session.cache_nbytes / 2**20:.2f} MiB"),
        ("donated", donated),
        ("cache-sized copies in the chunk program", str(len(copies))),
    ]


def measure_runs() -> list[tuple[str, str]]:
    """Wall time of 30 s of video, cold and warm; peak memory of 1 and 10 minutes."""
    with tempfile.TemporaryDirectory() as folder:
        cold, _ = generate(30, Path(folder))
        warm, _ = generate(30, Path(folder))
        _, short = generate(60, Path(folder))
        _, long = generate(600, Path(folder))
    return [
        ("wall time of 30 s of video, first run", f"{cold:.1f} s"),
        ("wall time of 30 s of video, compiled before", f"{warm:.1f} s"),
        ("peak memory of 1 minute", f"{short / 2**20:.0f} MiB"),
        ("peak memory of 10 minutes / of 1 minute", f"{long / short:.3f}"),
    ]


def generate(seconds: float, folder: Path) -> tuple[float, int]:
    """Wall time in seconds and peak memory in bytes of one `vidcache generate`."""
    command = [sys.executable, "-m", "vidcache_jax", "generate", "--seconds", str(seconds),
               "--out", str(folder / "video.mp4"),
               "--compilation-cache", str(folder / "compiled")]  # fmt: skip
    start = time.perf_counter()
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{' '.join(command)} failed")
    return time.perf_counter() - start, usage.ru_maxrss * 1024


def _machine() -> str:
    device = jax.devices()[0].device_kind
    return (
        f"{device}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"jax {jax.__version__}, {time.strftime('%Y-%m-%d')}"
    )


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
