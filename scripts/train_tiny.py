"""Trains the built-in model from nothing: the codec, then the DiT on its latents.

    python scripts/train_tiny.py                             # both stages, one after the other
    python scripts/train_tiny.py --stage dit --warm-start    # the DiT, from the shipped weights on

Every clip is drawn afresh from the step's key, so there is no data set. Interrupt it at will: it
goes on from the last checkpoint in ``--work-dir``. Each stage prints its held-out loss (fixed
keys, averaged weights), leaves pictures in ``--work-dir`` and, when it is done, writes float16
weights to ``--export-dir``.
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import tyro
from optax.contrib import MuonDimensionNumbers, muon
from PIL import Image
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import vidcache_jax as vj
from vidcache_jax.models.layers import apply
from vidcache_jax.models.wan_dit import abstract_params, init_params
from vidcache_jax.tiny import model as tiny
from vidcache_jax.tiny import prompt, training, world
from vidcache_jax.tiny.codec import SpriteCodec
from vidcache_jax.tiny.weights_io import WEIGHTS, load_weights, save_weights

Loss = Callable[[Any, jax.Array, int], jax.Array]
"""(params, key, batch size) -> loss on data drawn from the key."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args:
    """What to train and where to put it."""

    stage: Literal["all", "codec", "dit"] = "all"
    """The DiT needs an exported codec."""
    steps: int | None = None
    """Instead of the stage's own number of steps."""
    batch_size: int | None = None
    """Instead of the stage's own: scenes a step for the codec, clips a step for the DiT."""
    work_dir: Path = Path("runs/tiny")
    """Checkpoints and pictures."""
    export_dir: Path = WEIGHTS
    """Where the finished weights go; the default is where the package looks for them."""
    warm_start: bool = False
    """Begin with the weights in export_dir, if work_dir has no checkpoint to go on from."""
    save_every: int = 200
    """Steps between checkpoints."""
    seed: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """One network to train."""

    name: str
    steps: int
    batch_size: int
    optimiser: Callable[[optax.Schedule], optax.GradientTransformation]
    peak_learning_rate: float
    ema_decay: float
    init: Callable[[jax.Array], Any]
    load: Callable[[], Any]
    """The exported weights, in the form of `init`."""
    loss: Loss
    finish: Callable[[Any, Args], None]
    """Exports the averaged params and draws a picture."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    params: Any
    average: Any
    """Exponential moving average of params, which is what is exported."""
    optimiser: Any
    step: jax.Array


def codec_stage(export_dir: Path) -> Stage:
    """Autoencode single frames through noised latents."""
    codec = SpriteCodec()

    def trained(params: Any) -> Any:
        """Without the latents' moments, which are measured at the end."""
        return {name: params[name] for name in ("encoder", "decoder")}

    def load() -> Any:
        like = jax.eval_shape(codec.init, jax.random.key(0))
        return trained(load_weights(export_dir / "codec.safetensors", like))

    def draw(key: jax.Array, batch_size: int) -> jax.Array:
        def pair(key: jax.Array) -> jax.Array:
            scene_key, time_key = jax.random.split(key)
            moments = jax.random.randint(time_key, (2,), 0, 1000)
            return world.render(world.sample_scene(scene_key), moments)

        frames = jax.vmap(pair)(jax.random.split(key, batch_size))
        return frames.reshape(-1, *frames.shape[2:])

    def loss(params: Any, key: jax.Array, batch_size: int) -> jax.Array:
        data_key, level_key, noise_key = jax.random.split(key, 3)
        frames = draw(data_key, batch_size)
        latents = apply(codec.encoder, params["encoder"], frames)
        # Noise makes the decoder forgive the DiT's small errors; without the pull towards unit
        # variance the encoder would shout over the noise.
        level = 0.3 * jax.random.uniform(level_key, (frames.shape[0], 1, 1, 1))
        noisy = latents + level * jax.random.normal(noise_key, latents.shape)
        error = apply(codec.decoder, params["decoder"], noisy) - frames
        mean, variance = jnp.mean(latents, axis=(0, 1, 2)), jnp.var(latents, axis=(0, 1, 2))
        pull = jnp.mean(mean**2 + (variance - 1) ** 2)
        return jnp.mean(jnp.sqrt(error**2 + 1e-4)) + jnp.mean(error**2) + 0.02 * pull

    def finish(params: Any, args: Args) -> None:
        frames = jax.jit(draw, static_argnums=1)(jax.random.key(args.seed + 1), 64)
        raw = jax.jit(lambda x: apply(codec.encoder, params["encoder"], x))(frames)
        moments = {
            "latent_mean": jnp.mean(raw, axis=(0, 1, 2)),
            "latent_std": jnp.std(raw, axis=(0, 1, 2)),
        }
        params = {**params, **moments}
        save_weights(args.export_dir / "codec.safetensors", params)
        latents, _ = codec.encode(params, frames[None], ())
        decoded, _ = codec.decode(params, latents, ())
        psnr = -10 * np.log10(float(jnp.mean((decoded[0] - frames) ** 2)) / 4)
        print(f"codec: {psnr:.1f} dB on held-out frames")
        save_picture(args.work_dir / "codec.png", [frames[::8], decoded[0, ::8]])

    return Stage(
        name="codec",
        steps=3600,
        batch_size=16,
        optimiser=lambda rate: optax.adamw(rate, b2=0.99, weight_decay=1e-3),
        peak_learning_rate=3e-3,
        ema_decay=0.99,
        init=lambda key: trained(codec.init(key)),
        load=load,
        loss=loss,
        finish=finish,
    )


def dit_stage(export_dir: Path) -> Stage:
    """Flow by teacher forcing on the codec's latents."""
    config, codec = vj.WanConfig.tiny(), SpriteCodec()
    # Most frames of a clip only go on with what is there. What the prompt asks for is decided in
    # the first chunk, so openings are shown more often: short clips, four for each whole one.
    whole, opening = training.ClipConfig(), training.ClipConfig(num_frames=6, jump_probability=0.0)
    like = jax.eval_shape(codec.init, jax.random.key(0))
    codec_params = load_weights(export_dir / "codec.safetensors", like)

    def loss(params: Any, key: jax.Array, batch_size: int) -> jax.Array:
        def of(clips: training.ClipConfig, count: int, key: jax.Array) -> jax.Array:
            data_key, noise_key = jax.random.split(key)
            clip = training.sample_clips(data_key, count, clips)
            latents, _ = codec.encode(codec_params, clip.frames, ())
            return training.flow_loss(params, config, latents, clip, noise_key, clips)

        whole_key, opening_key = jax.random.split(key)
        return (of(whole, batch_size, whole_key) + of(opening, 4 * batch_size, opening_key)) / 2

    def finish(params: Any, args: Args) -> None:
        save_weights(args.export_dir / "dit.safetensors", params)
        model = tiny.load(args.export_dir)
        rows = []
        for text in prompt.EXAMPLES:
            session = vj.Session(model, vj.SlidingWindow(21, 3), prompt=text, seed=args.seed)
            frames = np.concatenate(list(session.generate(12)))
            rows.append(frames[::8].astype(np.float32) / 127.5 - 1)
        save_picture(args.work_dir / "dit.png", rows)

    def block_kernels(params: Any) -> Any:
        """Muon takes matrices: the blocks' kernels, stacked on axis 0. AdamW takes the rest."""
        matrix = MuonDimensionNumbers(reduction_axis=1, output_axis=2)
        is_matrix = lambda path: path[0].key == "blocks" and path[-1].key == "kernel"
        return jax.tree_util.tree_map_with_path(
            lambda path, _: matrix if is_matrix(path) else None, params
        )

    return Stage(
        name="dit",
        steps=3000,
        batch_size=4,
        optimiser=lambda rate: muon(
            rate,
            weight_decay=0.01,
            adam_b2=0.98,
            consistent_rms=0.2,
            muon_weight_dimension_numbers=block_kernels,
        ),
        peak_learning_rate=2e-3,
        ema_decay=0.998,
        init=lambda key: init_params(config, key),
        load=lambda: load_weights(export_dir / "dit.safetensors", abstract_params(config)),
        loss=loss,
        finish=finish,
    )


def train(stage: Stage, args: Args) -> Any:
    """Trains to the last step, resuming from a checkpoint if there is one; returns the average."""
    steps, batch_size = args.steps or stage.steps, args.batch_size or stage.batch_size
    warmup = min(200, steps // 2)
    rate = optax.warmup_cosine_decay_schedule(
        0.0, stage.peak_learning_rate, warmup, max(steps, warmup + 1), 1e-5
    )
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), stage.optimiser(rate))
    data_key, held_out_key, init_key = jax.random.split(jax.random.key(args.seed), 3)

    def init() -> TrainState:
        params = stage.load() if args.warm_start else stage.init(init_key)
        return TrainState(params, params, optimiser.init(params), jnp.zeros((), jnp.int32))

    @jax.jit
    def update(state: TrainState) -> tuple[TrainState, jax.Array]:
        key = jax.random.fold_in(data_key, state.step)
        loss, gradient = jax.value_and_grad(stage.loss)(state.params, key, batch_size)
        updates, optimiser_state = optimiser.update(gradient, state.optimiser, state.params)
        params = optax.apply_updates(state.params, updates)
        # The first steps are forgotten sooner than the decay would.
        decay = jnp.minimum(stage.ema_decay, (1.0 + state.step) / (10.0 + state.step))
        blend = lambda old, new: decay * old + (1 - decay) * new
        average = jax.tree.map(blend, state.average, params)
        return TrainState(params, average, optimiser_state, state.step + 1), loss

    @jax.jit
    def held_out(params: Any) -> jax.Array:
        keys = jax.random.split(held_out_key, 8)
        return jnp.mean(jax.lax.map(lambda key: stage.loss(params, key, batch_size), keys))

    folder = (args.work_dir / stage.name).absolute()
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeRemainingColumn(),
               TextColumn("loss {task.fields[loss]:.4f}"))  # fmt: skip
    with ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(max_to_keep=2)) as disk:
        state = jax.jit(init)()
        if (latest := disk.latest_step()) is not None:
            state = disk.restore(latest, args=ocp.args.StandardRestore(state))
            print(f"{stage.name}: going on from step {latest}")
        with Progress(*columns) as progress:
            task = progress.add_task(
                stage.name, total=steps, completed=int(state.step), loss=float("nan")
            )
            while int(state.step) < steps:
                state, loss = update(state)
                progress.update(task, completed=int(state.step), loss=float(loss))
                if int(state.step) % args.save_every == 0 or int(state.step) == steps:
                    disk.save(int(state.step), args=ocp.args.StandardSave(state))
                    measured = float(held_out(state.average))
                    progress.print(f"{stage.name} {int(state.step)}: held-out {measured:.4f}")
    return state.average


def save_picture(path: Path, rows: list[Any]) -> None:
    """Rows of frames in [-1, 1], enlarged."""
    grid = np.concatenate([np.concatenate(list(np.asarray(row)), axis=1) for row in rows])
    pixels = np.clip((grid + 1) * 127.5, 0, 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.repeat(2, axis=0).repeat(2, axis=1)).save(path)


def main(args: Args) -> None:
    for name in ("codec", "dit") if args.stage == "all" else (args.stage,):
        stage = {"codec": codec_stage, "dit": dit_stage}[name](args.export_dir)
        start = time.perf_counter()
        stage.finish(train(stage, args), args)
        print(f"{name}: {time.perf_counter() - start:.0f} s, weights in {args.export_dir}")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
