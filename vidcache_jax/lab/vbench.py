"""Clips out to VBench and VBench-Long, and their scores back in.

What their judges are is theirs; here is only how files are named and read. Facts, from the public
repository Vchitect/VBench (``prompts/README.md``, ``evaluate.py``, ``vbench2_beta_long/``):

* standard prompts: videos are called ``<prompt>-<index>.mp4``, index 0 to 4, all in one folder that
  should hold nothing else (the ending is taken from whatever file is listed first);
* videos of one's own: the prompt is what is left of the name without ``-<index>``. VBench's
  ``--mode=custom_input --prompt_file`` takes a JSON of file name to prompt instead, relative to the
  folder of videos; VBench-Long's ``long_custom_input`` takes no such file;
* VBench-Long cuts each video into clips ``<name>_<number>.mp4`` itself (2 s of one's own videos)
  and takes the name to end at the first ``_`` and a scene at ``-Scene``;
* the result is ``<run>_eval_results.json``, a list for each dimension whose first entry is the
  score and whose second lists ``video_path`` and ``video_results`` of every video or clip.

How recent releases treat other options is not known here and nothing depends on it.

Scores depend on whether short prompts were *extended* by a language model before videos were made
from them: the short ones are scored all the same. So an export says so, with a hash of the list.
"""

import dataclasses
import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vidcache_jax.lab import result
from vidcache_jax.lab.comparison import Comparison, digest
from vidcache_jax.lab.runs import is_finished, run_folder
from vidcache_jax.sampling.output_file import slug, write_text

RESULTS = "*_eval_results.json"
_CLIP = re.compile(r"_(\d+)\.mp4$")
_MAX_NAME = 200
"""Bytes; file systems take 255, and clips add to the name."""


@dataclasses.dataclass(frozen=True)
class Scores:
    """Of one policy.

    Attributes:
      scores: of each dimension, as VBench prints it.
      drifts: first clip minus last clip, in the unit of a clip's score and averaged over videos,
        where clips are listed; with imaging_quality this is the papers' delta Q.
      prompt_hash, extended: of the export.
    """

    scores: Mapping[str, float]
    drifts: Mapping[str, float]
    prompt_hash: str
    extended: bool


def export(
    comparison: Comparison, folder: Path, originals: Sequence[str] | None = None
) -> list[Path]:
    """Lays out the finished videos, a folder ``vbench/<policy>/`` for each policy.

    In it: ``videos/``, ``prompts.txt`` (one prompt a line), ``prompts.json`` (file name to prompt),
    ``export.json`` (prompt hash, extended or not, seeds). A prompt that cannot be a file name is
    shortened there, and `export.json` says so: such a video needs VBench's prompt file.

    Args:
      originals: the prompts to be scored, in the order of the comparison's, if those are extensions
        of them.

    Returns:
      The folders.

    Raises:
      ValueError: originals are of another number than prompts, or nothing is finished.
      OSError: a folder cannot be written.
    """
    if originals is not None and len(originals) != len(comparison.prompts):
        raise ValueError(
            f"{len(originals)} original prompts for {len(comparison.prompts)} prompts; "
            "give one for each, in the same order"
        )
    scored = dict(zip(comparison.prompts, originals or comparison.prompts, strict=True))
    made = []
    for label in comparison.policies:
        runs = [run for run in comparison.runs if run.label == label and is_finished(run, folder)]
        if not runs:
            continue
        target = policy_folder(folder, label)
        # An older export may have had other prompts.
        shutil.rmtree(target / "videos", ignore_errors=True)
        (target / "videos").mkdir(parents=True)
        prompts: dict[str, str] = {}
        seeds: dict[str, int] = {}
        for run in runs:
            name = f"{file_stem(scored[run.prompt])}-{comparison.seeds.index(run.seed)}.mp4"
            shutil.copyfile(run_folder(run, folder) / result.VIDEO, target / "videos" / name)
            prompts[name], seeds[name] = scored[run.prompt], run.seed
        about = {
            "policy": label,
            "prompt_list_sha256": prompt_hash(tuple(scored.values())),
            "extended": originals is not None,
            "seeds": seeds,
            "shortened": [name for name, text in prompts.items() if file_stem(text) != text],
            "generated_from": {scored[prompt]: prompt for prompt in comparison.prompts},
        }
        write_text(target / "prompts.txt", "".join(f"{text}\n" for text in scored.values()))
        write_text(target / "prompts.json", json.dumps(prompts, indent=1, ensure_ascii=False))
        write_text(target / "export.json", json.dumps(about, indent=1, ensure_ascii=False))
        made.append(target)
    if not made:
        raise ValueError(f"no video of this comparison is finished in {folder}")
    return made


def policy_folder(folder: Path, label: str) -> Path:
    return folder / "vbench" / slug(label, length=200)


def file_stem(prompt: str) -> str:
    """The prompt, or if VBench or the file system could not read it back, a short name for it."""
    is_plain = not re.search(r"[/\\\0_]|-Scene|-\d+$|^\.", prompt)
    if is_plain and prompt and len(prompt.encode()) <= _MAX_NAME:
        return prompt
    return f"{slug(prompt)}-{digest(prompt)}x"


def prompt_hash(prompts: Sequence[str]) -> str:
    """SHA-256 of the prompts, one a line."""
    return hashlib.sha256("".join(f"{prompt}\n" for prompt in prompts).encode()).hexdigest()


def read_scores(folder: Path, label: str) -> Scores | None:
    """What VBench left beside a policy's export, all its result files together; None if nothing.

    Of a dimension in several files the last by name counts; names carry the time.

    Raises:
      ValueError: a file is no result of VBench; the message names it.
    """
    place = policy_folder(folder, label)
    files = sorted(place.rglob(RESULTS))
    if not files:
        return None
    scores: dict[str, float] = {}
    drifts: dict[str, float] = {}
    for path in files:
        try:
            for dimension, entry in json.loads(path.read_text(encoding="utf-8")).items():
                scores[dimension] = float(entry[0])
                details = entry[1] if len(entry) > 1 and isinstance(entry[1], list) else []
                drift = clip_drift(details)
                if drift is not None:
                    drifts[dimension] = drift
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise ValueError(f"{path} is no result of VBench: {error!r}") from error
    about = json.loads((place / "export.json").read_text(encoding="utf-8"))
    return Scores(scores, drifts, about["prompt_list_sha256"], about["extended"])


def clip_drift(details: Sequence[Mapping[str, Any]]) -> float | None:
    """Mean over videos of the first clip's score minus the last clip's; None without clips."""
    clips: dict[str, dict[int, float]] = {}
    for entry in details:
        path = str(entry["video_path"])
        if number := _CLIP.search(path):
            clips.setdefault(path[: number.start()], {})[int(number[1])] = entry["video_results"]
    drifts = [scores[min(scores)] - scores[max(scores)] for scores in clips.values()
              if len(scores) > 1]  # fmt: skip
    return sum(drifts) / len(drifts) if drifts else None
