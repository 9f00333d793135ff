"""Text to a playable mp4, written while it is being made; or a list of texts to as many."""

import contextlib
import dataclasses
import time
from pathlib import Path

import jax
import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

from vidcache_jax import __version__
from vidcache_jax.cache import CachePolicy
from vidcache_jax.commands.compilation_cache import enable_compilation_cache
from vidcache_jax.commands.make_videos import make_videos
from vidcache_jax.commands.model_options import ModelOptions, opened_by, scale_of
from vidcache_jax.commands.policy_option import (
    FILE_OPTIONS,
    fitted,
    states_capacity,
    take_policy_name,
    with_policy_options,
)
from vidcache_jax.commands.processes import join_processes, leave_processes, loss_of
from vidcache_jax.models.video_model import VideoModel
from vidcache_jax.planning.memory import check_memory, memory_accounted
from vidcache_jax.sampling.contact_sheet import ContactSheet
from vidcache_jax.sampling.frame_sink import FrameSink
from vidcache_jax.sampling.job import Job, read_prompt_file
from vidcache_jax.sampling.possible import check_possible
from vidcache_jax.sampling.prefix import Video, prefix_chunks, read_prefix
from vidcache_jax.sampling.prompts import embed_all, with_texts
from vidcache_jax.sampling.rollout import Rollout
from vidcache_jax.sampling.session import Session, chunks_for
from vidcache_jax.sampling.writer import VideoWriter
from vidcache_jax.sharding import DATA, ONE_DEVICE, Layout, make_mesh, parse_mesh


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerateArgs(ModelOptions):
    """Generate a video from a prompt, chunk by chunk, writing it while it is being made; with
    --prompts, a folder of videos.

    --policy NAME decides what the model remembers; the options of the policy in use are listed
    below, those of another by --policy NAME --help. Without any option a demo is made.
    """

    prompt: str = "a red circle bounces in the meadow, camera still"
    """What to show; the built-in model answers an unknown word with its vocabulary."""
    prompts: Path | None = None
    """A file of prompts, one a line, for a folder of videos: one each, with its own noise. The same
    command goes on where it was after an interruption, and with prompts added at the end."""
    mesh: str | None = None
    """With --prompts, how the devices are used, such as data=4,heads=2: four videos at once, each
    by two devices. By default each device makes its own video."""
    shard_weights: bool = False
    """With --mesh, keep the weights in parts, gathered layer by layer; for models too large for a
    device."""
    distributed: bool = False
    """With --prompts, on several hosts: run this command on each, and they share the work. How they
    meet is found on TPU pods and under Slurm; elsewhere give the next three."""
    coordinator: str | None = None
    """With --distributed, HOST:PORT of process 0, the same everywhere."""
    num_processes: int | None = None
    """With --distributed, how many processes there are."""
    process_id: int | None = None
    """With --distributed, which of them this one is, from 0."""
    prefix: Path | None = None
    """An image or video to begin with; it is scaled and cropped to the model's size. Whole chunks
    count: the latest frames that fill some, or the first frame repeated in front to fill one."""
    seconds: float = 20.0
    """Length of what is generated, after the prefix; rounded up to whole chunks."""
    seed: int = 0
    """Of all noise: the same seed makes the same video."""
    out: Path | None = None
    """The mp4 to write, by default video.mp4; an existing file is replaced when the new one is
    complete. With --prompts the folder, by default videos."""
    contact_sheet: Path | None = None
    """Also write a picture (.png) of frames over time."""


@dataclasses.dataclass(frozen=True)
class Timing:
    """What was made, and in what time."""

    frames: int
    frames_per_second: float
    total: float
    """Seconds from loading the model to the finished file."""
    first_chunk: float
    """Seconds of the first chunk, in which the program is compiled."""
    later_frames: int
    later: float
    """Frames and seconds of all chunks after the first."""

    def line(self) -> str:
        """One line that says what is counted."""
        video = self.frames / self.frames_per_second
        text = f"{self.frames} frames = {video:.1f} s of video in {self.total:.1f} s"
        if self.later_frames:
            text += f", {self.later_frames / self.later:.1f} FPS after the first chunk"
        return text + (
            f" ({self.first_chunk:.1f} s, with compilation). Counted: pixel frames; "
            "text encoding, denoise and commit passes, decoding, mp4 encoding"
        )


def main(argv: list[str]) -> int:
    """Runs the command; returns the exit status.

    0 if all was made; 1 if some prompts could not be read, 2 for impossible options or files, 3 if
    another process of the job was lost, 130 after Ctrl-C.
    """
    console = Console(stderr=True)
    try:
        policy_name, rest = take_policy_name(argv)
        args_type = with_policy_options(GenerateArgs, policy_name)
        args = tyro.cli(args_type, args=rest, prog="vidcache generate", registry=FILE_OPTIONS)
        check_options(args)
        if args.distributed:
            join_processes(args.coordinator, args.num_processes, args.process_id)
        enable_compilation_cache(args.compilation_cache)
        if args.prompts is not None:
            status = make_videos(job_of(args, args.policy, rest), console)
        else:
            status = 0 if generate(args, args.policy, rest, console) else 130
    except (ValueError, OSError) as error:
        message = "\n".join([str(error), *getattr(error, "__notes__", [])])
        console.print(f"vidcache generate: {message}", style="red", markup=False, highlight=False)
        status = 2
    except jax.errors.JaxRuntimeError as error:
        if not jax.distributed.is_initialized():
            raise
        console.print(f"vidcache generate: {loss_of(error)}", markup=False, highlight=False)
        status = 3
    if status not in (0, 1) and jax.distributed.is_initialized():
        leave_processes(status)
    return status


def generate(args: GenerateArgs, policy: CachePolicy, given: list[str], console: Console) -> bool:
    """Makes the video; False if it was interrupted (what was made is kept and plays).

    Raises:
      ValueError: an option is impossible. OSError: a file cannot be written.
    """
    started = time.perf_counter()
    opened = opened_by(args)
    model = opened.outline
    prefix = None if args.prefix is None else _read_prefix(args.prefix, model, console)
    begun = 0 if prefix is None else len(prefix_chunks(prefix, model))
    num_chunks = chunks_for(args.seconds, model, begun)
    num_latents = (begun + num_chunks) * model.rollout.frames_per_chunk
    policy = fitted(policy, states_capacity(given), num_latents, model.head_roles)
    rollout = Rollout(model.config, model.rollout, policy)
    check_possible(model, rollout, 1, num_latents)
    check_memory(model, rollout, 1)
    with contextlib.ExitStack() as files:
        files.enter_context(memory_accounted(model, rollout, 1))
        # Before the DiT is loaded there is most room for the text encoder.
        texts = embed_all(model, [args.prompt])
        model = with_texts(opened.load(ONE_DEVICE), texts)
        session = Session(model, policy, prompt=args.prompt, seed=args.seed, prefix=prefix)
        chunks = session.generate(args.seconds)
        chunk_ends, is_complete, written = [time.perf_counter()], True, []
        sinks: list[FrameSink] = [files.enter_context(_video(args, model, policy))]
        if args.contact_sheet is not None:
            sheet = ContactSheet(
                args.contact_sheet,
                total_frames=model.codec.num_pixel_frames(num_latents),
                fps=model.frames_per_second,
                scale=max(1, scale_of(args, model) // 2),
            )
            sinks.append(files.enter_context(sheet))
        if begun:
            for sink in sinks:
                sink.write(session.prefix_frames)
        progress = files.enter_context(Progress(*_columns(), console=console))
        task = progress.add_task("compiling", total=num_chunks, fps=0.0, cache=_cache(session))
        try:
            for frames in chunks:
                for sink in sinks:
                    sink.write(frames)
                chunk_ends.append(time.perf_counter())
                written.append(len(frames))
                rate = sum(written[1:]) / max(chunk_ends[-1] - chunk_ends[1], 1e-9)
                progress.update(
                    task, advance=1, description="generating", fps=rate, cache=_cache(session)
                )
        except KeyboardInterrupt:
            is_complete = False
    timing = Timing(
        frames=sum(written),
        frames_per_second=model.frames_per_second,
        total=time.perf_counter() - started,
        first_chunk=chunk_ends[min(1, len(written))] - chunk_ends[0],
        later_frames=sum(written[1:]),
        later=chunk_ends[-1] - chunk_ends[min(1, len(written))],
    )
    if not is_complete:
        console.print(f"interrupted after {len(written)} of {num_chunks} chunks")
    if written:
        for sink in sinks:
            console.print(f"wrote {sink.path}", markup=False, highlight=False, soft_wrap=True)
        console.print(timing.line(), markup=False, highlight=False, soft_wrap=True)
    return is_complete


def check_options(args: GenerateArgs) -> None:
    """Refuses options that would have no effect.

    Raises:
      ValueError: one is for a single video and another for several.
    """
    default = GenerateArgs()
    changed = lambda name: getattr(args, name) != getattr(default, name)
    if args.prompts is None:
        unused = ("mesh", "shard_weights", "distributed")
        remedy = "give --prompts as well"
    else:
        unused, remedy = ("prompt", "prefix", "contact_sheet"), "leave it out with --prompts"
    for name in filter(changed, unused):
        which = "several videos" if args.prompts is None else "one video"
        raise ValueError(f"--{name.replace('_', '-')} is for {which}; {remedy}")
    for name in filter(changed, ("coordinator", "num_processes", "process_id")):
        if not args.distributed:
            raise ValueError(f"--{name.replace('_', '-')} is for several hosts; add --distributed")


def job_of(args: GenerateArgs, policy: CachePolicy, given: list[str]) -> Job:
    """The job that the arguments ask for.

    Raises:
      ValueError: an option is impossible. OSError: a file cannot be read.
    """
    prompts = read_prompt_file(args.prompts or Path())
    layout, opened = _layout(args), opened_by(args)
    outline = opened.outline
    num_latents = chunks_for(args.seconds, outline) * outline.rollout.frames_per_chunk
    policy = fitted(policy, states_capacity(given), num_latents, outline.head_roles)
    rollout = Rollout(outline.config, outline.rollout, policy, layout)
    check_possible(outline, rollout, layout.size(DATA), num_latents)
    check_memory(outline, rollout, layout.size(DATA))
    job = Job(
        model=outline,
        rollout=rollout,
        prompts=prompts,
        seed=args.seed,
        seconds=args.seconds,
        scale=scale_of(args, outline),
        folder=args.out or Path("videos"),
        comment=_made_by(args, outline, policy),
    )
    # Of a folder that processes share these are all, and else those of some process at least.
    todo = [prompt for i, prompt in enumerate(prompts) if not job.path(i).is_file()]
    with memory_accounted(outline, rollout, layout.size(DATA)):
        # Before the DiT is loaded there is most room for the text encoder.
        texts = embed_all(outline, todo)
        return dataclasses.replace(job, model=with_texts(opened.load(layout), texts))


def _layout(args: GenerateArgs) -> Layout:
    devices = jax.devices()
    if args.mesh is None and len(devices) == 1:
        return ONE_DEVICE
    sizes = {DATA: len(devices)} if args.mesh is None else parse_mesh(args.mesh)
    return Layout(make_mesh(**sizes, devices=devices), args.shard_weights)


def _read_prefix(path: Path, model: VideoModel, console: Console) -> Video:
    """The prefix's frames; says what is made of them."""
    frames = read_prefix(path, model)
    used = sum(len(chunk) for chunk in prefix_chunks(frames, model))
    height, width = model.frame_size
    console.print(
        f"{path}: {len(frames)} frames at {model.frames_per_second:g} FPS, scaled and cropped to "
        f"{height} x {width}; the video begins with "
        + (f"the last {used} of them" if used <= len(frames) else f"{used}, the first repeated"),
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip
    return frames


def _video(args: GenerateArgs, model: VideoModel, policy: CachePolicy) -> VideoWriter:
    return VideoWriter(
        args.out or Path("video.mp4"),
        fps=model.frames_per_second,
        scale=scale_of(args, model),
        title=args.prompt,
        comment=_made_by(args, model, policy),
    )


def _made_by(args: GenerateArgs, model: VideoModel, policy: CachePolicy) -> str:
    return f"vidcache_jax {__version__}: {model.name}, {policy}, seed {args.seed}"


def _cache(session: Session) -> str:
    return f"{session.cache_nbytes / 2**20:.1f} MiB, {session.cache_fill:.0%} full"


def _columns() -> list[ProgressColumn]:
    return [
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("chunk {task.completed}/{task.total}"),
        TextColumn("{task.fields[fps]:.1f} FPS"),
        TimeRemainingColumn(),
        TextColumn("cache {task.fields[cache]}"),
    ]
