"""Does absorption help? What it costs the built-in model when layers lose their history.

    python scripts/study_ispa.py

One video for each of some prompts and seeds, all in one batch. The *unmodified model* attends under
the base window for the whole video. *Variants* go on from the same warm-up with the same noise, the
same layers local:

    ISPA             they keep the sink, and project with W + dW
    no absorption    they keep the sink, and project with W
    no history       they keep nothing, and project with W (layers chosen by what that costs)

*Difference* of a chunk is the root mean square difference of a video's latents to those of the
unmodified model, divided by the root mean square of the latter; the mean over videos is shown.
Chunks count from the transition on; later ones are also given the differences of those before.
*Better* is the share of the videos whose difference over all chunks is smaller than with "no
absorption". *Residual* is that of the warm-up, mean over the local layers (`cache.absorption`).

The built-in model has six layers: ratios 0.3, 0.5 and 0.7 make 2, 3 and 4 of them local. Prompts
are of its language; that it has seen the same words in training is not excluded, the noise is new.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

import vidcache_jax as vj
from vidcache_jax.models import wan_dit
from vidcache_jax.sampling.rollout import Rollout, RolloutState, chunk_noise
from vidcache_jax.tiny import paint, world


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args:
    """What to measure."""

    videos: int = 16
    ratios: tuple[float, ...] = (0.3, 0.5, 0.7)
    warmups: tuple[int, ...] = (6, 12, 24)
    chunks: int = 6
    """Chunks after the transition."""
    window: vj.SlidingWindow = vj.SlidingWindow(window_size=12, sink_size=3)
    mu0: float = 1e-3
    seed: int = 1000
    """Of the prompts and of the noise."""


VARIANTS = {
    "ISPA": {},
    "no absorption": dict(absorb=False),
    "no history": dict(absorb=False, sink_frames=0),
}


def main(args: Args) -> None:
    study = Study(args)
    title = f"difference to the unmodified model, {args.videos} videos, {args.window}"
    columns = ("warm-up", "ratio", "variant", "chunk 1", f"chunk {args.chunks}", "all", "better")
    table = Table(*columns, "residual", title=title)
    unmodified, _ = study.chunks(args.window, study.begin(args.window), 0, study.num_chunks)
    for warmup in args.warmups:
        first = warmup // study.frames
        truth = unmodified[first : first + args.chunks]
        for ratio in args.ratios:
            rows = {}
            for name, options in VARIANTS.items():
                policy = vj.ISPA(
                    args.window, warmup_frames=warmup, ratio=ratio, mu0=args.mu0, **options
                )
                made, cache = study.chunks(policy, study.warm(policy), first, args.chunks)
                rows[name] = difference(made, truth), residual(policy, cache)
            for name, (off, left) in rows.items():
                overall = np.sqrt(np.mean(off**2, axis=0))
                none = np.sqrt(np.mean(rows["no absorption"][0] ** 2, axis=0))
                shown = (off[0].mean(), off[-1].mean(), overall.mean())
                table.add_row(
                    str(warmup), str(ratio), name, *(f"{x:.3f}" for x in shown),
                    f"{np.mean(overall < none):.0%}", f"{left:.3f}",
                )  # fmt: skip
    Console(width=110).print(table)


class Study:
    """Rollouts of the same prompts with the same noise; each warm-up is made once."""

    def __init__(self, args: Args):
        self.args, self.model = args, vj.load_model("tiny")
        embeds = jnp.stack([jnp.asarray(self.model.embed_text(text)) for text in prompts(args)])
        encode = jax.jit(wan_dit.encode_text, static_argnums=1)
        self.text_kv = encode(self.model.params, self.model.config, embeds)
        self.step = jax.jit(Rollout.step, static_argnums=0)
        self.frames = self.model.rollout.frames_per_chunk
        self.num_chunks = max(args.warmups) // self.frames + args.chunks
        self.warm_states: dict[tuple[int, int], RolloutState] = {}

    def begin(self, policy: vj.CachePolicy) -> RolloutState:
        rollout = Rollout(self.model.config, self.model.rollout, policy)
        return rollout.init(self.args.videos, self.model.latent_size, jnp.float32)

    def warm(self, policy: vj.ISPA) -> RolloutState:
        """The state at the transition, which depends on the sink and on no other choice."""
        key = policy.sink_frames, policy.warmup_frames
        if key not in self.warm_states:
            longest = vj.ISPA(
                self.args.window, warmup_frames=10**6 * self.frames, sink_frames=policy.sink_frames
            )
            state, rollout = self.begin(longest), self._rollout(longest)
            for index in range(max(self.args.warmups) // self.frames):
                state, _ = self._step(rollout, state, index)
                frames = (index + 1) * self.frames
                self.warm_states[policy.sink_frames, frames] = state
        return jax.tree.map(jnp.copy, self.warm_states[key])

    def chunks(self, policy, state: RolloutState, first: int, count: int):
        """[count, B, F, Y, X, C] of the chunks from ``first`` on, and the last cache."""
        rollout, made = self._rollout(policy), []
        for index in range(first, first + count):
            rollout, state = rollout.advance(self.model.params, state, index * self.frames)
            state, latents = self._step(rollout, state, index)
            made.append(latents)
        return np.stack(made), state.cache

    def _rollout(self, policy) -> Rollout:
        return Rollout(self.model.config, self.model.rollout, policy)

    def _step(self, rollout: Rollout, state: RolloutState, index: int):
        steps = len(self.model.rollout.denoise_timesteps)
        shape = (self.args.videos, self.frames, *self.model.latent_size, self.model.config.in_dim)
        noise = chunk_noise(jax.random.key(self.args.seed), jnp.int32(index), steps, shape)
        state, chunk = self.step(rollout, self.model.params, state, self.text_kv, *noise)
        return state, np.asarray(chunk.latents)


def prompts(args: Args) -> list[str]:
    """Motions and places in turn, colours and shapes at random."""
    rng = np.random.default_rng(args.seed)
    return [
        f"a {rng.choice(paint.COLOURS)} {rng.choice(paint.SHAPES)} {motion} in the {place}, "
        "camera still"
        for motion, place, _ in zip(
            itertools.cycle(world.MOTIONS), itertools.cycle(paint.PLACES), range(args.videos)
        )
    ]


def difference(made: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """[chunks, B]"""
    mean = lambda x: np.mean(x**2, axis=(2, 3, 4, 5))
    return np.sqrt(mean(made - truth) / mean(truth))


def residual(policy: vj.ISPA, cache) -> float:
    per_layer = cache.residual_after if policy.absorb else cache.residual_before
    return float(np.asarray(per_layer)[np.asarray(cache.is_local)].mean())


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
