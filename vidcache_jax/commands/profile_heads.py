"""Which of a model's attention heads look where: the role table of --policy head-forcing."""

import dataclasses
from pathlib import Path

import tyro
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from vidcache_jax.commands.compilation_cache import enable_compilation_cache
from vidcache_jax.loading import load_model
from vidcache_jax.models.video_model import VideoModel
from vidcache_jax.profiling.heads import HeadProfile, HeadProfiler, ProfileSettings
from vidcache_jax.profiling.picture import draw_profile


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProfileHeadsArgs:
    """Roll out prompts under a sliding window with a sink of one frame, measure how every head
    divides its attention between first frame, middle and current chunk, and write a role table.
    """

    out: Path = Path("head_roles.json")
    """The table to write, for --policy head-forcing --roles FILE."""
    picture: Path | None = None
    """Also draw it (.png): layers from top to bottom, heads from left to right."""
    prompts: Path | None = None
    """A text file with a prompt a line; the model's examples by default."""
    model: str = "tiny"
    """The model to profile."""
    settings: tyro.conf.OmitArgPrefixes[ProfileSettings] = ProfileSettings()
    compilation_cache: Path = Path("~/.cache/vidcache_jax")
    """Folder in which compiled programs are kept, so that the next run starts faster."""


def main(argv: list[str]) -> int:
    """Runs the command; returns the exit status."""
    console = Console(stderr=True)
    try:
        args = tyro.cli(ProfileHeadsArgs, args=argv, prog="vidcache profile-heads")
        profile = profile_heads(args, console)
    except (ValueError, OSError) as error:
        message = f"vidcache profile-heads: {error}"
        console.print(message, style="red", markup=False, highlight=False)
        return 2
    console.print(_table(profile))
    return 0


def profile_heads(args: ProfileHeadsArgs, console: Console) -> HeadProfile:
    """Measures and writes.

    Raises:
      ValueError: an option is impossible. OSError: a file cannot be read or written.
    """
    enable_compilation_cache(args.compilation_cache)
    model = load_model(args.model)
    profiler = HeadProfiler(model, _prompts(args, model), args.settings)
    for path in filter(None, (args.out, args.picture)):
        if not path.absolute().parent.is_dir():
            raise FileNotFoundError(f"no directory {path.parent} to write {path.name} in")
    shares = []
    with Progress(console=console) as progress:
        task = progress.add_task("profiling", total=len(profiler.prompts))
        for measured in profiler.shares():
            shares.append(measured)
            progress.advance(task)
    profile = profiler.profile(shares)
    profile.save(args.out)
    console.print(f"wrote {args.out}", markup=False, highlight=False, soft_wrap=True)
    if args.picture is not None:
        draw_profile(profile, args.picture)
        console.print(f"wrote {args.picture}", markup=False, highlight=False, soft_wrap=True)
    return profile


def _prompts(args: ProfileHeadsArgs, model: VideoModel) -> tuple[str, ...]:
    if args.prompts is None:
        return model.example_prompts
    lines = args.prompts.read_text().splitlines()
    return tuple(line.strip() for line in lines if line.strip())


def _table(profile: HeadProfile) -> Table:
    stable = profile.stability()
    heads = [role for row in profile.roles.table for role in row]
    title = f"{len(heads)} heads; stability over up to four runs, 1 = always the same heads"
    table = Table("role", "heads", *(f"over {name}" for name in stable), title=title)
    for role in ("local", "anchor", "memory"):
        values = (f"{over[role]:.2f}" for over in stable.values())
        table.add_row(role, str(heads.count(role)), *values)
    return table
