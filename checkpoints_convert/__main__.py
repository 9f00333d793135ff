"""``python -m checkpoints_convert``: the converter's command line."""

import contextlib
import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from checkpoints_convert.convert import Stage, convert
from checkpoints_convert.dit import DitCheckpoint, open_dit
from checkpoints_convert.export import export
from checkpoints_convert.families import FAMILIES, config_of, recognise
from checkpoints_convert.names import plain_names
from checkpoints_convert.open_source import open_source
from checkpoints_convert.safetensors_source import read_json
from checkpoints_convert.verify import verify
from vidcache_jax.checkpoint import CheckpointError
from vidcache_jax.config import WanConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args:
    """Convert a PyTorch checkpoint of a Wan DiT to a folder that vidcache_jax loads.

    Reads the original Wan files, Self-Forcing's and its kin's .pt, and diffusers folders. The
    sources are never changed, nothing in them is executed, and the result appears whole or not at
    all.
    """

    source: tyro.conf.Positional[Path]
    """A .safetensors, .pt or .pth file, an index, or a folder with one of them; with --export a
    converted folder."""
    out: tyro.conf.Positional[Path | None] = None
    """The folder to write; it must not exist."""
    dtype: Literal["source", "bfloat16", "float16", "float32"] = "source"
    """Of the parameters; "source" keeps the source's, so that nothing is lost."""
    which: str | None = None
    """The dict to take from a .pt file that holds several; the averaged generator by default."""
    config: Path | None = None
    """Wan's or diffusers' config.json, instead of the one beside the weights."""
    lora: tuple[Path, ...] = ()
    """LoRA files or PEFT folders to merge, in this order."""
    lora_alpha: float | None = None
    """Of the LoRA files that do not say it."""
    dry_run: bool = False
    """Only say what the checkpoint is and whether it fits."""
    verify: bool = False
    """Read the result again and compare it with the source; one that exists is only compared."""
    export: Literal["wan", "diffusers"] | None = None
    """The other way: from a converted folder to PyTorch names, as .safetensors."""


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    args = tyro.cli(Args, args=argv, prog="python -m checkpoints_convert")
    console = Console(stderr=True)
    try:
        with _stages(console) as stage:
            run(args, Console(), stage)
    except CheckpointError as error:
        console.print(f"checkpoints_convert: {error}", style="red", markup=False, highlight=False)
        return 2
    return 0


def run(args: Args, console: Console, stage: Stage) -> None:
    """Does what the arguments ask for.

    Raises:
      CheckpointError: something cannot be read, converted, written or verified.
    """
    if args.export is not None:
        out = _needed(args.out)
        export(args.source, out, FAMILIES[args.export], stage=stage)
        console.print(f"wrote {out}", markup=False, highlight=False, soft_wrap=True)
        return
    opened = open_dit(
        args.source,
        config=None if args.config is None else _config(args),
        which=args.which,
        loras=args.lora,
        lora_alpha=args.lora_alpha,
    )
    dtype = opened.dtype if args.dtype == "source" else jnp.dtype(args.dtype)
    if args.dry_run:
        _describe(opened, dtype, console)
        opened.params(dtype)
        console.print("every tensor has its place, and every place its tensor")
        return
    out = _needed(args.out)
    if not (args.verify and out.exists()):
        convert(opened, out, dtype=dtype, stage=stage)
        console.print(f"wrote {out}: {opened.provenance.describe()}",
                      markup=False, highlight=False, soft_wrap=True)  # fmt: skip
    if args.verify:
        count = verify(opened, out, stage=stage)
        console.print(f"{count} tensors are bit for bit those of the source")


def _needed(out: Path | None) -> Path:
    if out is None:
        raise CheckpointError("name the folder to write after the source, or add --dry-run")
    return out


def _config(args: Args) -> WanConfig:
    """The config file's; it may be Wan's or diffusers'."""
    assert args.config is not None
    tensors = plain_names(open_source(args.source, args.which).tensors)
    family = recognise(tensors, args.source)
    return config_of(family, tensors, read_json(args.config), args.config)


def _describe(opened: DitCheckpoint, dtype: np.dtype, console: Console) -> None:
    source, config = opened.source, opened.config
    table = Table("tensor", "shape", "dtype", title=str(source.path))
    for name, tensor in source.tensors.items():
        table.add_row(name, " x ".join(map(str, tensor.shape)), str(tensor.dtype))
    console.print(table)
    sizes = [np.prod(tensor.shape, dtype=np.int64) for tensor in source.tensors.values()]
    dtypes = Counter(str(tensor.dtype) for tensor in source.tensors.values())
    facts = {
        "names": opened.family.name,
        "taken from": source.picked,
        "left out": ", ".join(source.left_out),
        "kind": opened.provenance.describe(),
        "model": f"{config.num_layers} layers, dim {config.dim}, {config.num_heads} heads, "
        f"{int(sum(sizes)) / 1e9:.2f} billion parameters",
        "dtypes": ", ".join(f"{count} {name}" for name, count in dtypes.items()),
        "merged": ", ".join(str(lora.path) for lora in opened.loras),
        "config": json.dumps(dataclasses.asdict(config)),
        "would write": f"{int(sum(sizes)) * dtype.itemsize / 1e9:.2f} GB of {dtype}",
    }
    for name, fact in facts.items():
        if fact:
            console.print(f"{name}: {fact}", markup=False, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def _stages(console: Console) -> Iterator[Stage]:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(),
               TransferSpeedColumn(), TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=console) as progress:

        def stage(what: str, nbytes: int):
            task = progress.add_task(what, total=nbytes)
            return lambda done: progress.advance(task, done)

        yield stage


if __name__ == "__main__":
    sys.exit(main())
