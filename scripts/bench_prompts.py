"""How well the built-in model shows what its prompts say, and for how long; prints one table.

    python scripts/bench_prompts.py
    python scripts/bench_prompts.py --seconds 600 --budget 12 --videos 1 --policies future-forcing

One video for each colour and shape, 32 in all, with the three motions in turn and the five places.
Definitions. The told sprite is *found* in a frame if pixels of its colour cover the inside of some
shape in some cell, and no more, by half (`vidcache_jax.tiny.spotting`); whether it is the told one
is not asked, for a blurred square is soon taken for a circle. *Motion* is the share of the steps
(every other frame) between two frames with a found sprite in which it moved to where the told
motion may take it: to the next column in the told direction for a drift, to the next row and column
for a bounce, to the next row or column for a circle. A drifting sprite is out of view half of the
time and is expected in half of the frames. The *last tenth* is that of each video.
"""

import dataclasses
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

import vidcache_jax as vj
from vidcache_jax.tiny.spotting import Spotted, spot
from vidcache_jax.tiny.suite import prompt_of, told_scenes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args:
    """What to measure."""

    policies: tuple[str, ...] = (
        "sliding-window", "window-and-sink", "tethercache", "head-forcing"
    )  # fmt: skip
    """Also `future-forcing`, and `future-and-sink`; a sink is of three frames."""
    budget: int = 21
    """Latent frames attended to, the current chunk included; not Head Forcing's 4, 7 and 11."""
    seconds: float = 20.0
    videos: int = 32
    """The first of the 32."""
    seed: int = 0
    sheets: Path | None = None
    """Existing folder for a contact sheet of each video."""


def main(args: Args) -> None:
    model = vj.load_model("tiny")
    table = Table(
        "policy", "found", "found in the last tenth", "motion",
        title=f"{args.videos} videos of {args.seconds:g} s, budget of {args.budget} latent frames",
    )  # fmt: skip
    for name in args.policies:
        scores = np.array([
            score(model, name, *told, args) for told in told_scenes()[: args.videos]
        ])  # fmt: skip
        table.add_row(name, *(f"{share:.0%}" for share in np.nanmean(scores, axis=0)))
    Console(width=100).print(table)


def policy_of(name: str, budget: int, model: vj.VideoModel) -> vj.CachePolicy:
    return {
        "sliding-window": lambda: vj.SlidingWindow(budget),
        "window-and-sink": lambda: vj.SlidingWindow(budget, 3),
        "tethercache": lambda: vj.TetherCache(3, budget - 7, 4),
        "head-forcing": lambda: vj.HeadForcing(model.head_roles),
        "future-forcing": lambda: vj.FutureForcing(budget),
        "future-and-sink": lambda: vj.FutureForcing(budget, protect_sink_frames=3),
    }[name]()


def score(
    model: vj.VideoModel, name: str, colour: str, shape: str, motion: str, place: str, args: Args,
) -> list[float]:  # fmt: skip
    """[found, found in the last tenth, motion] of one video."""
    text = prompt_of(colour, shape, motion, place)
    policy = policy_of(name, args.budget, model)
    session = vj.Session(model, policy, prompt=text, seed=args.seed)
    frames = np.concatenate(list(session.generate(args.seconds)))
    if args.sheets is not None:
        path = args.sheets / f"{name}-{args.budget}-{colour}-{shape}.png"
        fps = model.frames_per_second
        with vj.ContactSheet(path, total_frames=len(frames), fps=fps) as sheet:
            sheet.write(frames)
    spotted = spot(frames, colour)
    found = spotted.found
    expected = 0.5 if motion.startswith("drifts") else 1.0
    share = lambda part: min(1.0, float(np.mean(part)) / expected)
    steps = moves(spotted, motion)
    return [
        share(found),
        share(found[-len(found) // 10 :]),
        float(np.mean(steps)) if len(steps) else np.nan,
    ]


def moves(spotted: Spotted, motion: str) -> np.ndarray:
    """Whether each step between found sprites is one that the motion may take."""
    both = spotted.found[:-2] & spotted.found[2:]
    column, row = (np.stack([x[:-2], x[2:]])[:, both] for x in (spotted.column, spotted.row))
    across, down = column[1] - column[0], row[1] - row[0]
    if motion.startswith("drifts"):
        return (across == (1 if motion.endswith("right") else -1)) & (down == 0)
    if motion == "bounces":
        # At an edge, back.
        return (np.abs(across) == 1) & (np.abs(down) == 1)
    return (np.abs(across) + np.abs(down)) == 1


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
