"""Which policy drifts, which remembers, at what cost: a study on the built-in model.

    python scripts/study_policies.py                    # the whole of it: many hours
    python scripts/study_policies.py --videos 2 --seeds 0 --seconds 20 --work-dir small

Every variant is given the same prompts, seeds and noise, and attends to at most 21 latent frames;
but `full` (not run unless it is named) to all, Future Forcing to 18, Head Forcing to 4, 7 or 11 by
head, and half of ISPA's layers, once it has absorbed, to the first frame and the chunk. A finished
video is kept in the work folder, so it can be interrupted and started again; the report on what is
finished is written at the end, and on Ctrl-C. Tables of all figures are in the work folder.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import tyro
from rich.console import Console
from study_picture import draw
from study_report import ABLATIONS, finished_by_all, is_ablation, policies_of, report

import vidcache_jax as vj
from vidcache_jax.cache import CachePolicy, HeadRoles
from vidcache_jax.commands.compilation_cache import enable_compilation_cache
from vidcache_jax.commands.policy_text import read_policy
from vidcache_jax.lab.comparison import Comparison, Run
from vidcache_jax.lab.figures import finished, write_tables
from vidcache_jax.lab.runs import run_all, unfinished
from vidcache_jax.sampling.output_file import write_text
from vidcache_jax.sampling.session import chunks_for
from vidcache_jax.tiny.suite import prompt_of, told_scenes

# At most 21 latent frames, the chunk's own among them; the exceptions are told above. A policy that
# is not named here joins as it is by default.
VARIANTS = {
    "full": (),  # remembers everything: no equal budget
    "sliding-window": ("sliding-window:sink_size=0", "sliding-window:sink_size=3"),
}
_ISPA = vj.ISPA(vj.SlidingWindow(window_size=21, sink_size=3), warmup_frames=21)
# What no option of the command line says.
BUILT: dict[str, Callable[[HeadRoles], CachePolicy]] = {
    "ispa": lambda roles: _ISPA,
    "head-forcing, roles at random": lambda roles: vj.HeadForcing(roles.shuffled(0)),
    "head-forcing, all heads memory": lambda roles: vj.HeadForcing(
        roles.replaced("local", "memory").replaced("anchor", "memory")
    ),
    "ispa, no absorption": lambda roles: dataclasses.replace(_ISPA, absorb=False),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args:
    """What to run; the defaults are the whole study."""

    variants: tuple[str, ...] | None = None
    """As in vidcache compare --policies, or as the report names them; all by default."""
    videos: int = 32
    """The first of the 32 prompts."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the policies."""
    ablation_seeds: tuple[int, ...] = (0,)
    """Of the ablations; of the policies they are compared with, the same seeds count."""
    seconds: float = 240.0
    work_dir: Path = Path("study")
    write: Path | None = None
    """Where the report goes, docs/policies.md say, with its picture beside it; into the work folder
    by default."""


def main(args: Args) -> None:
    console = Console()
    say = lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True)
    enable_compilation_cache(Path("~/.cache/vidcache_jax"))
    comparisons = comparisons_of(args)
    args.work_dir.mkdir(parents=True, exist_ok=True)
    todo = sum(len(unfinished(each, args.work_dir)) for each in comparisons)
    chunks = chunks_for(args.seconds, comparisons[0].model)
    wanted = sum(len(each.runs) for each in comparisons)
    say(f"{todo} of {wanted} videos of {chunks} chunks are to be made")
    made = 0

    def on_chunk(run: Run) -> None:
        nonlocal made
        made += 1
        if made % chunks == 0:
            say(f"{made // chunks} of {todo}: {run.label}, {run.prompt}, {run.seed}")

    try:
        for comparison in comparisons:
            for failure in run_all(comparison, args.work_dir, on_chunk=on_chunk):
                say(f"could not be made: {failure.run.label}: {failure.reason}")
    except KeyboardInterrupt:
        say("interrupted; the report is on what is finished")
    runs = [
        each
        for comparison in comparisons
        for each in finished_by_all(finished(comparison, args.work_dir), comparison.policies)
    ]
    if not runs:
        say("no prompt is finished for every variant yet")
        return
    write_tables(runs, args.work_dir)
    path = args.write or args.work_dir / "policies.md"
    draw(policies_of(runs), path.with_suffix(".png"))
    write_text(path, report(runs, wanted, picture=path.with_suffix(".png").name))
    say(f"wrote {path}")


def comparisons_of(args: Args) -> list[Comparison]:
    """Of the policies, and of the ablations, as far as they are asked for."""
    model = vj.load_model("tiny")
    roles = model.head_roles
    assert roles is not None, "the built-in model has a table"
    frames = chunks_for(args.seconds, model) * model.rollout.frames_per_chunk
    ablations = [label for labels in ABLATIONS.values() for label in labels]
    named = [label for name in vj.POLICIES for label in VARIANTS.get(name, (name,))]
    chosen = args.variants or (*named, *ablations)

    def of(labels: Sequence[str], seeds: tuple[int, ...]) -> Comparison:
        return Comparison(
            model=model,
            policies={
                label: BUILT[label](roles) if label in BUILT else read_policy(label, frames, model)
                for label in labels
            },
            prompts=tuple(prompt_of(*told) for told in told_scenes()[: args.videos]),
            seeds=seeds,
            seconds=args.seconds,
            of_sprites=True,
        )

    parts = (
        ([label for label in chosen if not is_ablation(label)], args.seeds),
        ([label for label in chosen if is_ablation(label)], args.ablation_seeds),
    )
    return [of(labels, seeds) for labels, seeds in parts if labels]


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
