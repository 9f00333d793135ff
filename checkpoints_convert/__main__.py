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
from checkpoints_convert.dit import open_dit
from checkpoints_convert.export import export
from checkpoints_convert.families import FAMILIES, config_of, recognise
from checkpoints_convert.names import plain_names
from checkpoints_convert.open_source import open_source
from checkpoints_convert.opened import OpenedModel
from checkpoints_convert.pipeline import (
    COMPANIONS,
    OpenedPipeline,
    convert_pipeline,
    find_companions,
    open_pipeline,
    verify_pipeline,
)
from checkpoints_convert.safetensors_source import read_json
from checkpoints_convert.verify import verify
from vidcache_jax.checkpoint import CheckpointError
from vidcache_jax.config import WanConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args:
    """Convert PyTorch checkpoints of Wan to a folder that vidcache_jax loads.

    Reads the original Wan files, Self-Forcing's and its kin's .pt, and diffusers folders: a DiT
    alone, or with the VAE, the text encoder and the tokenizer that make it a pipeline. The sources
    are never changed, nothing in them is executed, and the result appears whole or not at all.
    """

    source: tyro.conf.Positional[Path]
    """The DiT: a .safetensors, .pt or .pth file, an index, or a folder with one of them. The other
    parts are found by themselves if it is the folder of a whole pipeline, of Wan or of diffusers.
    With --export, a converted DiT."""
    out: tyro.conf.Positional[Path | None] = None
    """The folder to write; it must not exist."""
    vae: Path | None = None
    """Wan2.1_VAE.pth, diffusers' folder vae, or the pipeline's folder it is in."""
    text_encoder: Path | None = None
    """models_t5_umt5-xxl-enc-bf16.pth, diffusers' folder text_encoder, or the pipeline's folder."""
    tokenizer: Path | None = None
    """tokenizer.json, its folder, or the pipeline's folder."""
    dtype: Literal["source", "bfloat16", "float16", "float32"] = "source"
    """Of the DiT and the text encoder; "source" keeps the source's, so that nothing is lost. The
    VAE always keeps its own."""
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
        console.print(f"checkpoints_convert: {error}", style="red", markup=False, highlight=False,
                      soft_wrap=True)  # fmt: skip
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
    dit = open_dit(
        args.source,
        config=None if args.config is None else _config(args),
        which=args.which,
        loras=args.lora,
        lora_alpha=args.lora_alpha,
    )
    dtype = None if args.dtype == "source" else jnp.dtype(args.dtype)
    given = {name: getattr(args, name) for name in COMPANIONS}
    companions = find_companions(args.source, given)
    opened = open_pipeline(dit, **companions) if companions else dit
    if args.dry_run:
        _describe(opened, dtype, console)
        return
    out = _needed(args.out)
    if not (args.verify and out.exists()):
        if isinstance(opened, OpenedPipeline):
            convert_pipeline(opened, out, dtype=dtype, stage=stage)
        else:
            convert(opened, out, dtype=dtype, stage=stage)
        console.print(f"wrote {out}: {_known(dit)}", markup=False, highlight=False, soft_wrap=True)
    if args.verify:
        if isinstance(opened, OpenedPipeline):
            count = verify_pipeline(opened, out, stage=stage)
        else:
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


def _describe(
    opened: OpenedModel | OpenedPipeline, dtype: np.dtype | None, console: Console
) -> None:
    """Says what everything is, then whether it fits."""
    if isinstance(opened, OpenedPipeline):
        for kind, model in opened.models.items():
            _describe_model(model, opened.dtypes(dtype)[kind], console)
        console.print(f"tokenizer: {opened.tokenizer}", markup=False, highlight=False,
                      soft_wrap=True)  # fmt: skip
        opened.params(dtype)
    else:
        own = opened.dtype if dtype is None else dtype
        _describe_model(opened, own, console)
        opened.params(own)
    console.print("every tensor has its place, and every place its tensor")


def _describe_model(opened: OpenedModel, dtype: np.dtype, console: Console) -> None:
    source = opened.source
    table = Table("tensor", "shape", "dtype", title=str(source.path))
    for name, tensor in source.tensors.items():
        table.add_row(name, " x ".join(map(str, tensor.shape)), str(tensor.dtype))
    console.print(table)
    sizes = [np.prod(tensor.shape, dtype=np.int64) for tensor in source.tensors.values()]
    dtypes = Counter(str(tensor.dtype) for tensor in source.tensors.values())
    facts = {
        "names": opened.family,
        "taken from": source.picked,
        "left out": ", ".join(source.left_out),
        "kind": _known(opened),
        "model": f"{opened.sizes}, {int(sum(sizes)) / 1e9:.2f} billion parameters",
        "dtypes": ", ".join(f"{count} {name}" for name, count in dtypes.items()),
        "merged": ", ".join(str(lora.path) for lora in opened.loras),
        "config": json.dumps(dataclasses.asdict(opened.config)),
        "would write": f"{int(sum(sizes)) * dtype.itemsize / 1e9:.2f} GB of {dtype}",
    }
    for name, fact in facts.items():
        if fact:
            console.print(f"{name}: {fact}", markup=False, highlight=False, soft_wrap=True)


def _known(opened: OpenedModel) -> str:
    return opened.kind if opened.provenance is None else opened.provenance.describe()


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
