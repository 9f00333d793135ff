"""Clips out to VBench and VBench-Long, and their scores back in.

What their judges are is theirs; here is only how files are named and read. Facts, from the public
repository Vchitect/VBench (``prompts/README.md``, ``evaluate.py``, ``vbench2_beta_long/``):

* standard prompts: videos are called ``<prompt>-<index>.mp4``, index 0 to 4, all in one folder that
  should hold nothing else (the ending is taken from whatever file is listed first);
* videos of one's own: the prompt is what is left of the name without ``-<index>``. VBench's
  ``--mode=custom_input --prompt_file`` takes a JSON of file name to prompt instead, relative to the
  folder of videos;
* VBench-Long cuts each video into clips ``split_clip/<name>/<name>_<number>.mp4`` itself (2 s of
  one's own videos), and where it looks for cuts first, into ``<name>-Scene-<scene>_<number>.mp4``;
  the name ends at the first ``_`` and at ``-Scene``;
* VBench-Long's ``long_custom_input`` takes no prompt file, and its prompt is the whole ``<name>``:
  the index stays in it, and a shortened name is scored instead of what was asked for. Dimensions
  that read the prompt (overall_consistency, say) are therefore wrong of shortened names, and a
  little off of all; ``long_vbench_standard`` has the prompts of VBench's own list, without index;
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
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vidcache_jax.lab import result
from vidcache_jax.lab.comparison import Comparison, Run, digest
from vidcache_jax.lab.runs import is_finished, run_folder
from vidcache_jax.sampling.output_file import slug, write_text

RESULTS = "*_eval_results.json"
EXPORT = "export.json"
_CLIP = re.compile(r"^(.*?)(?:-Scene-(\d+))?_(\d+)\.mp4$")
"""Video, scene if there are any, number of the clip."""
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
    ``export.json`` (prompt hash, extended or not, which run each video is). A prompt that cannot be
    a file name is shortened there, and `export.json` says so: such a video needs VBench's prompt
    file.

    Args:
      originals: the prompts to be scored, in the order of the comparison's, if those are extensions
        of them.

    Returns:
      The folders.

    Raises:
      ValueError: originals are of another number than prompts or not all different, nothing is
        finished, or a folder has VBench's results of another export.
      OSError: a folder cannot be written.
    """
    if originals is not None and len(originals) != len(comparison.prompts):
        raise ValueError(
            f"{len(originals)} original prompts for {len(comparison.prompts)} prompts; "
            "give one for each, in the same order"
        )
    if originals is not None and (twice := [x for x, n in Counter(originals).items() if n > 1]):
        raise ValueError(
            f"the original prompt {twice[0]!r} is there twice; videos of one original would have "
            "the same names, so export them from comparisons of their own"
        )
    scored = dict(zip(comparison.prompts, originals or comparison.prompts, strict=True))
    targets: dict[Path, dict[str, Run]] = {}
    for label in comparison.policies:
        named = {
            f"{file_stem(scored[run.prompt])}-{comparison.seeds.index(run.seed)}.mp4": run
            for run in comparison.runs
            if run.label == label and is_finished(run, folder)
        }
        if named:
            targets[policy_folder(folder, label)] = named
    if not targets:
        raise ValueError(f"no video of this comparison is finished in {folder}")
    about = {
        target: _about(named, scored, is_extended=originals is not None)
        for target, named in targets.items()
    }
    for target, content in about.items():
        _check_results_are_of(target, content)
    for target, named in targets.items():
        # An older export may have had other prompts.
        shutil.rmtree(target / "videos", ignore_errors=True)
        (target / "videos").mkdir(parents=True)
        for name, run in named.items():
            shutil.copyfile(run_folder(run, folder) / result.VIDEO, target / "videos" / name)
        prompts = {name: scored[run.prompt] for name, run in named.items()}
        write_text(target / "prompts.txt", "".join(f"{text}\n" for text in scored.values()))
        write_text(target / "prompts.json", json.dumps(prompts, indent=1, ensure_ascii=False))
        write_text(target / EXPORT, json.dumps(about[target], indent=1, ensure_ascii=False))
    return list(targets)


def _about(
    named: Mapping[str, Run], scored: Mapping[str, str], *, is_extended: bool
) -> dict[str, Any]:
    """What an export of one policy is of, for JSON."""
    texts = {name: scored[run.prompt] for name, run in named.items()}
    return {
        "policy": next(iter(named.values())).label,
        "prompt_list_sha256": prompt_hash(tuple(scored.values())),
        "extended": is_extended,
        "seeds": {name: run.seed for name, run in named.items()},
        "runs": {name: run.name for name, run in named.items()},
        "shortened": [name for name, text in texts.items() if file_stem(text) != text],
        "generated_from": {original: prompt for prompt, original in scored.items()},
    }


def _check_results_are_of(target: Path, about: Mapping[str, Any]) -> None:
    """Scores have no trace of what was scored, so they stay with the export that they are of."""
    results = sorted(target.rglob(RESULTS))
    if results and _read_about(target) != about:
        raise ValueError(
            f"{results[0]} is of an export with other videos or prompts; move VBench's results out "
            f"of {target} before exporting again"
        )


def _read_about(target: Path) -> dict[str, Any] | None:
    """Of the export that is there; None if it is not, or damaged."""
    try:
        return dict(json.loads((target / EXPORT).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def shortened(target: Path) -> list[str]:
    """Names of an export's videos that are not their prompts."""
    return (_read_about(target) or {}).get("shortened", [])


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
      ValueError: a file is no result of VBench, or what was exported is not known; the message
        names the file.
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
                # Of an earlier file: the score that it belongs to does not count any more.
                drifts.pop(dimension, None)
                drift = clip_drift(details)
                if drift is not None:
                    drifts[dimension] = drift
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise ValueError(f"{path} is no result of VBench: {error!r}") from error
    about = _read_about(place)
    if about is None or not {"prompt_list_sha256", "extended"} <= about.keys():
        raise ValueError(
            f"{place} has results of VBench, but no {EXPORT} that says of which videos; move them "
            "away, run vidcache export-vbench and score its videos"
        )
    return Scores(scores, drifts, about["prompt_list_sha256"], about["extended"])


def read_all(comparison: Comparison, folder: Path) -> tuple[dict[str, Scores], tuple[str, ...]]:
    """The scores of every policy that has any, by label, and why some could not be read."""
    scores: dict[str, Scores] = {}
    unread: list[str] = []
    for label in comparison.policies:
        try:
            found = read_scores(folder, label)
        except (ValueError, OSError) as error:
            unread.append(str(error))
        else:
            if found is not None:
                scores[label] = found
    return scores, tuple(unread)


def clip_drift(details: Sequence[Mapping[str, Any]]) -> float | None:
    """Mean over videos of the first clip's score minus the last clip's; None without clips."""
    clips: dict[str, dict[tuple[int, int], float]] = {}
    for entry in details:
        # Scenes have folders of their own, so that only the file's name tells the video.
        if found := _CLIP.match(Path(str(entry["video_path"])).name):
            video, scene, number = found.groups()
            place = int(scene or 0), int(number)
            clips.setdefault(video, {})[place] = entry["video_results"]
    drifts = [scores[min(scores)] - scores[max(scores)] for scores in clips.values()
              if len(scores) > 1]  # fmt: skip
    return sum(drifts) / len(drifts) if drifts else None
