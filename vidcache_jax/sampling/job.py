"""A list of prompts made into a folder of videos, by one process or several, in one go or many.

FOLDER/
  job.json                    what the videos were made with
  0000-a-red-circle.mp4       one for each prompt, there when it is whole
"""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Float

from vidcache_jax.models.fingerprint import fingerprint
from vidcache_jax.models.video_model import VideoModel
from vidcache_jax.sampling.batch import generate_batch, own_videos
from vidcache_jax.sampling.output_file import folder_aside, slug, write_text
from vidcache_jax.sampling.possible import check_possible
from vidcache_jax.sampling.prompts import embed_all
from vidcache_jax.sampling.rollout import Rollout
from vidcache_jax.sampling.session import chunks_for, pad_text
from vidcache_jax.sampling.writer import VideoWriter
from vidcache_jax.sharding import DATA

SETTINGS = "job.json"

Prompt = tuple[int, Float[np.ndarray, "Tt text_dim"]]
"""The number of a prompt in its list, and its text as the model takes it."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Job:
    """A video for each prompt, ``layout.size("data")`` at once.

    Attributes:
      model: with its parameters where the rollout's layout wants them.
      rollout: of the model.
      prompts: by their numbers; one that is there twice is two videos with different noise.
      seed: of the noise of all videos, each of which has its own (`generate_batch`).
      seconds: of each video; rounded up to whole chunks.
      scale: pixels of the videos are repeated scale x scale times.
      folder: for the videos; made if it is not there. Processes may share it or have their own.
      comment: kept in every video.
    """

    model: VideoModel
    rollout: Rollout
    prompts: tuple[str, ...]
    seed: int
    seconds: float
    scale: int
    folder: Path
    comment: str = ""

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """All that the videos depend on but their prompts, for JSON."""
        return {
            "model": self.model.described,
            "weights": fingerprint(self.model.params),
            "policy": repr(self.rollout.policy),
            "seed": self.seed,
            "seconds": self.seconds,
            "scale": self.scale,
        }

    @property
    def num_chunks(self) -> int:
        """Of each video."""
        return chunks_for(self.seconds, self.model)

    def path(self, number: int) -> Path:
        """Of a prompt's video."""
        return self.folder / f"{number:04d}-{slug(self.prompts[number])}.mp4"


@dataclasses.dataclass(frozen=True)
class Failure:
    """A prompt of which no video can be made, and why."""

    number: int
    reason: str


def open_job(job: Job) -> list[int]:
    """Makes the folder ready; returns the numbers of the prompts that have no video yet.

    Raises:
      ValueError: the job is impossible, the folder holds videos of another one, or the processes
        have been given different ones. OSError: the folder cannot be written.
    """
    _check_possible(job)
    _check_same_everywhere(job)
    job.folder.mkdir(parents=True, exist_ok=True)
    _check_same_as_before(job)
    content = {**job.settings, "prompts": job.prompts}
    write_text(job.folder / SETTINGS, json.dumps(content, indent=1, ensure_ascii=False))
    # Where processes do not share the folder, each has the videos that it wrote itself.
    there = _of_all_processes([job.path(number).is_file() for number in range(len(job.prompts))])
    return np.flatnonzero(~there.any(axis=0)).tolist()


def run_job(
    job: Job,
    todo: Iterable[int],
    *,
    on_chunk: Callable[[int], None] = lambda num_videos: None,
    on_failure: Callable[[Failure], None] = lambda failure: None,
) -> None:
    """Makes the videos of the prompts ``todo``; every process of a job calls it alike.

    What is finished is kept whatever stops the rest. A prompt that cannot be read costs its own
    video only.

    Args:
      on_chunk: told how many videos have become longer by a chunk.
      on_failure: told of every prompt that cannot be read, when it turns out.

    Raises:
      CheckpointError: the text encoder is damaged. OSError: a video cannot be written.
      jax.errors.JaxRuntimeError: another process is lost, or the chips have too little memory.
    """
    readable = _readable(job, list(todo), on_failure)
    while batch := list(itertools.islice(readable, job.rollout.layout.size(DATA))):
        _make(job, batch, on_chunk)


def read_prompt_file(path: Path) -> tuple[str, ...]:
    """The lines of a file that are not empty.

    Raises:
      ValueError: it cannot be read or has no prompt; the message names it.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read prompts from {path}: {error}") from error
    prompts = tuple(line.strip() for line in lines if line.strip())
    if not prompts:
        raise ValueError(f"{path} has no prompt; write one a line")
    return prompts


def _readable(
    job: Job, todo: Sequence[int], on_failure: Callable[[Failure], None]
) -> Iterator[Prompt]:
    texts = embed_all(job.model, [job.prompts[number] for number in todo])
    for number in todo:
        text = texts[job.prompts[number]]
        if isinstance(text, ValueError):
            on_failure(Failure(number, str(text)))
        else:
            yield number, pad_text(job.model, text)


def _make(job: Job, batch: list[Prompt], on_chunk: Callable[[int], None]) -> None:
    """Makes the videos of a batch, at most one for each place on the mesh."""
    # Places that are left over repeat the last video, and nothing of them is kept.
    missing = job.rollout.layout.size(DATA) - len(batch)
    numbers, texts = zip(*batch, *[batch[-1]] * missing, strict=True)
    chunks = generate_batch(
        job.model, job.rollout, np.stack(texts), np.array(numbers), seed=job.seed,
        num_chunks=job.num_chunks,
    )  # fmt: skip
    with contextlib.ExitStack() as files:
        videos: dict[int, VideoWriter] = {}
        for chunk in chunks:
            for place, frames in own_videos(chunk.frames).items():
                if place >= len(batch):
                    continue
                if place not in videos:
                    videos[place] = files.enter_context(_whole_video(job, numbers[place]))
                videos[place].write(frames)
            # A process that writes nothing must not run ahead of the others.
            jax.block_until_ready(chunk.frames)
            on_chunk(len(batch))


@contextlib.contextmanager
def _whole_video(job: Job, number: int) -> Iterator[VideoWriter]:
    """Writes a video aside and moves it to its name when it is whole, and only then."""
    final = job.path(number)
    with folder_aside(final) as aside:
        with VideoWriter(
            aside / final.name,
            fps=job.model.frames_per_second,
            scale=job.scale,
            title=job.prompts[number],
            comment=job.comment,
        ) as video:
            yield video
        os.replace(video.path, final)


def _check_possible(job: Job) -> None:
    rollout, model = job.rollout, job.model
    rollout.policy.check_model(lambda: fingerprint(model.params))
    num_frames = job.num_chunks * model.rollout.frames_per_chunk
    check_possible(model, rollout, rollout.layout.size(DATA), num_frames)


def _check_same_everywhere(job: Job) -> None:
    given = hashlib.sha256(json.dumps([job.settings, job.prompts]).encode()).digest()
    digests = _of_all_processes(list(given))
    if (digests != digests[0]).any():
        raise ValueError(
            "the processes of this job were given different prompts or settings; start the same "
            "command with the same files everywhere"
        )


def _check_same_as_before(job: Job) -> None:
    path = job.folder / SETTINGS
    if not path.is_file():
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        prompts = tuple(before.pop("prompts"))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); choose another folder") from error
    # Prompts may be added at the end.
    now = {**job.settings, "prompts": job.prompts[: len(prompts)]}
    before["prompts"] = prompts
    if differing := [name for name in now if now[name] != before.get(name)]:
        name = differing[0]
        raise ValueError(
            f"{job.folder} holds videos of another job, which differs in {', '.join(differing)} "
            f"({name} there: {before.get(name)}, here: {now[name]}); choose another folder"
        )


def _of_all_processes(values: list[Any]) -> np.ndarray:
    """The values that each process has, [processes, values]."""
    own = np.array(values)
    if jax.process_count() == 1:
        return own[None]
    return multihost_utils.process_allgather(own)
