"""Measures the conversion of checkpoints with the real models' shapes; prints one table.

    nice -n 19 python scripts/bench_convert.py --work-dir /somewhere/with/12/GB

The checkpoints are random bfloat16. Definitions. *Convert*, *verify* and *load* are each a process
of their own, as a user would run them; their time is that of the process, imports included. *Peak
memory* is the largest resident size of that process, pages of files that are mapped included.
*Convert* hashes the source, reads it and writes the result. *Disk* is how fast the same bytes are
copied by plain reads and writes, fsync included, right before.
"""

import dataclasses
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table
from safetensors.numpy import save_file

from checkpoints_convert import FAMILIES
from checkpoints_convert.rules import layers_of, source_name
from vidcache_jax.checkpoint.paths import by_path
from vidcache_jax.config import WanConfig
from vidcache_jax.models.wan_dit import abstract_params

CONVERT = "from checkpoints_convert.__main__ import main; status = main(sys.argv[1:])"
LOAD = (
    "import jax; from checkpoints_convert import load_checkpoint; "
    "status = int(not jax.block_until_ready(load_checkpoint(sys.argv[1])[0]))"
)
# Not ru_maxrss, which a process inherits from the one that started it.
REPORT = "; print(open('/proc/self/status').read()); sys.exit(status)"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args:
    """What to measure."""

    work_dir: Path
    """Is filled with up to three times the largest checkpoint, and emptied."""
    cases: tuple[str, ...] = ("1.3b", "14b-1", "14b-2", "14b-4")
    """The 1.3B, or the 14B with so many of its 40 layers."""
    steps: tuple[Literal["convert", "verify", "load"], ...] = ("convert", "verify", "load")
    """What to time; the first is needed by the others."""
    form: Literal["safetensors", "pt"] = "safetensors"
    """Of the source."""


def main(args: Args) -> None:
    table = Table(
        "model",
        "source",
        "what",
        "wall time",
        "throughput",
        "CPU time",
        "peak memory",
        title=_machine(),
    )
    args.work_dir.mkdir(parents=True)
    try:
        for name in args.cases:
            measure(name, args, table)
    finally:
        shutil.rmtree(args.work_dir)
    Console(width=110).print(table)


def measure(name: str, args: Args, table: Table) -> None:
    """Makes a checkpoint, converts, verifies and loads it."""
    config = WanConfig.wan_1_3b() if name == "1.3b" else WanConfig.wan_14b()
    if name != "1.3b":
        config = dataclasses.replace(config, num_layers=int(name.partition("-")[2]))
    source, out = args.work_dir / "source", args.work_dir / "converted"
    nbytes = write_random(source, config, args.form)
    programs = {
        "convert": (CONVERT, source, out),
        "verify": (CONVERT, source, out, "--verify"),
        "load": (LOAD, out),
    }
    rows = {"disk": (copy_time(source, args.work_dir / "copy"), 0.0, 0)}
    rows |= {step: run(*programs[step]) for step in args.steps}
    for what, (seconds, cpu, peak) in rows.items():
        table.add_row(
            name, f"{nbytes / 1e9:.2f} GB {args.form}", what, f"{seconds:.1f} s",
            f"{nbytes / 1e6 / seconds:.0f} MB/s",
            *((f"{cpu:.1f} s", f"{peak / 2**20:.0f} MiB") if peak else ()),
        )  # fmt: skip
    shutil.rmtree(source)
    shutil.rmtree(out)


def write_random(folder: Path, config: WanConfig, form: str) -> int:
    """A Wan folder of random bfloat16 in [-1, 1); returns the bytes of its weights."""
    folder.mkdir()
    rules = FAMILIES["wan"].rules(config.patch_size)
    rng = np.random.default_rng(0)

    def draw(shape: tuple[int, ...]) -> np.ndarray:
        bits = rng.integers(0, 2**16, size=shape, dtype=np.uint16)
        # Exponents of -1 down to tiny; the sign and the fraction stay random.
        return ((bits & 0x80FF) | 0x3E80 - ((bits >> 8) & 0x7) * 0x80).view(jnp.bfloat16)

    state, total = {}, 0
    for path, leaf in by_path(abstract_params(config)).items():
        for layer in layers_of(path, leaf.shape):
            rule, name = source_name(rules, path, layer)
            shape = leaf.shape if layer is None else leaf.shape[1:]
            state[name] = draw(rule.inverse(np.broadcast_to(np.int8(0), shape)).shape)
            total += state[name].nbytes
    (folder / "config.json").write_text(_json(config))
    if form == "pt":
        import torch

        tensors = {
            f"model.{name}": torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
            for name, x in state.items()
        }
        torch.save({"generator_ema": tensors}, folder / "model.pt")
    else:
        save_file(state, folder / "diffusion_pytorch_model.safetensors")
    return total


def copy_time(source: Path, copy: Path) -> float:
    """Seconds to read and write the weights."""
    largest = max(source.iterdir(), key=lambda path: path.stat().st_size)
    start = time.perf_counter()
    with largest.open("rb") as read, copy.open("wb") as written:
        while block := read.read(16 << 20):
            written.write(block)
        written.flush()
        os.fsync(written.fileno())
    seconds = time.perf_counter() - start
    copy.unlink()
    return seconds


def run(program: str, *arguments: str | Path) -> tuple[float, float, int]:
    """Wall time and CPU time in seconds and peak memory in bytes of a process."""
    command = [sys.executable, "-c", f"import sys; {program}{REPORT}", *map(str, arguments)]
    before, start = os.times(), time.perf_counter()
    process = subprocess.run(command, capture_output=True, text=True)
    seconds, after = time.perf_counter() - start, os.times()
    peak = re.search(r"VmHWM:\s+(\d+) kB", process.stdout)
    if process.returncode or peak is None:
        raise RuntimeError(f"{program} failed: {process.stdout}{process.stderr}")
    cpu = after.children_user + after.children_system
    cpu -= before.children_user + before.children_system
    return seconds, cpu, int(peak[1]) * 1024


def _json(config: WanConfig) -> str:
    return json.dumps({"_class_name": "WanModel", **dataclasses.asdict(config)})


def _machine() -> str:
    return (
        f"{os.cpu_count()} cores, Python {platform.python_version()}, jax {jax.__version__}, "
        f"{time.strftime('%Y-%m-%d')}"
    )


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
