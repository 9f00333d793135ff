"""A plan made for eight CPU devices, where all of it can be counted by hand."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh

from vidcache_jax import cli
from vidcache_jax.cache import SlidingWindow
from vidcache_jax.commands.plan import latents_of
from vidcache_jax.config import RolloutConfig, WanConfig
from vidcache_jax.models import wan_dit
from vidcache_jax.planning.analytic import analytic_plan
from vidcache_jax.planning.chips import Chip
from vidcache_jax.planning.compiled import compiled_plan
from vidcache_jax.planning.cycles import estimated_cycles
from vidcache_jax.planning.planned_run import PlannedRun
from vidcache_jax.planning.slices import SHAPES, chips_of, mesh_for_one_video
from vidcache_jax.sampling.rollout import Rollout
from vidcache_jax.sharding import DATA, HEADS, SEQUENCE, Layout, make_mesh

CHIP = Chip(tflops=1, hbm_gib=1e-3, hbm_gbs=100, link_gbs=1, linear=0.5, attention=0.25)
CONFIG = WanConfig(
    dim=48, ffn_dim=20, num_heads=4, num_layers=2, freq_dim=8, text_len=5, text_dim=7, in_dim=3,
    out_dim=3,
)  # fmt: skip
ROLLOUT = RolloutConfig(denoise_timesteps=(1000, 500))


@functools.cache
def planned(shard_weights: bool = False):
    layout = Layout(make_mesh(data=2, heads=4), shard_weights)
    rollout = Rollout(CONFIG, ROLLOUT, SlidingWindow(7, 2), layout)
    return compiled_plan(rollout, 4, (4, 8), CHIP, jnp.bfloat16)


@functools.cache
def by_formula(shard_weights: bool = False):
    layout = Layout(AbstractMesh((2, 1, 4), (DATA, SEQUENCE, HEADS)), shard_weights)
    rollout = Rollout(CONFIG, ROLLOUT, SlidingWindow(7, 2), layout)
    return analytic_plan(rollout, 4, (4, 8), CHIP, jnp.bfloat16)


def test_what_a_chip_holds():
    plan = planned()
    leaves = jax.tree.leaves(wan_dit.abstract_params(CONFIG, jnp.bfloat16))
    assert plan.weights == sum(leaf.size * 2 for leaf in leaves)
    # Two videos and one head on a chip: keys and values of 7 frames of 8 tokens, 7 numbers.
    assert plan.state == 2 * (2 * 2 * 7 * 8 * 12 * 2 + 2 * 7 * 4) + 4
    assert plan.temporaries > 0
    assert plan.headroom == pytest.approx(1e-3 * 2**30 - plan.total)


def test_weights_in_parts_are_smaller_and_travel():
    whole, parts = planned(), planned(shard_weights=True)
    kernels = 2 * (8 * 48 * 48 + 2 * 48 * 20) * 2
    assert parts.weights == whole.weights - kernels * 3 // 4
    assert parts.moved > whole.moved + kernels


def test_what_a_chip_does():
    plan = planned()
    assert plan.num_chips == 8 and plan.videos == 4
    passes, tokens = 3, 3 * 8
    all_videos = 4 * passes * 2 * 4 * tokens * (7 * 8 + 5) * 48
    assert plan.work.attention == all_videos / 8
    exchanged = [c for c in plan.traffic if c.kind == "all-to-all"]
    # q, k, v and the result in each layer of each pass, half or whole precision as compiled.
    assert sum(c.times for c in exchanged) == 4 * 2 * passes
    seconds = plan.work.linear / 0.5e12 + plan.work.attention / 0.25e12 + plan.moved / 1e9
    assert plan.seconds == pytest.approx(seconds)
    assert plan.frames_per_second(4) == pytest.approx(4 * 3 * 4 / seconds)


@pytest.mark.parametrize("shard_weights", [False, True])
def test_formulas_agree_with_the_compiled_program(shard_weights):
    compiled, formula = planned(shard_weights), by_formula(shard_weights)
    for name in ("num_chips", "videos", "weights", "state", "other_inputs", "work", "weights_read"):
        assert getattr(formula, name) == getattr(compiled, name), name

    def exchanges(plan):
        # XLA's CPU backend moves bfloat16 as float32 here and there.
        kinds = [c for c in plan.traffic if c.kind == "all-to-all"]
        return sum(c.times for c in kinds), {c.nbytes for c in kinds}

    (times, [nbytes]), (compiled_times, compiled_nbytes) = map(exchanges, (formula, compiled))
    assert times == compiled_times and compiled_nbytes <= {nbytes, 2 * nbytes}
    # Eight times as many chips hold an eighth of a video's temporaries, none or all of a head's.
    assert 0 < formula.temporaries < 4 * compiled.temporaries
    assert formula.compiler_seconds is None and compiled.compiler_seconds is not None


def test_a_chip_with_few_tokens_waits_for_the_weights():
    plan = by_formula()
    assert plan.weights_read == 3 * plan.weights == by_formula(True).weights_read
    assert plan.linear_seconds == plan.work.linear / 0.5e12
    slow = dataclasses.replace(plan, chip=dataclasses.replace(CHIP, hbm_gbs=0.1))
    assert slow.linear_seconds == plan.weights_read / 0.1e9 > plan.linear_seconds
    assert slow.seconds == slow.linear_seconds + plan.attention_seconds + plan.link_seconds


def test_weights_in_parts_are_gathered_in_every_layer_of_every_pass():
    gathered = by_formula(True).moved - by_formula(False).moved
    assert gathered == 2 * 3 * (8 * 48 * 48 + 2 * 48 * 20) * 2


def test_cycles_of_loops_count_by_their_turns():
    noted = 'backend_config={"estimated_cycles":"7"}'
    hlo = f"""
%body (x: f32[2]) -> f32[2] {{
  ROOT %twice = f32[2] fusion(%x), {noted}
}}

ENTRY %main (x: f32[2]) -> f32[2] {{
  %loop = f32[2] while(%x), body=%body, backend_config={{"known_trip_count":{{"n":"5"}}}}
  ROOT %copy = f32[2] copy(%loop), {noted}
}}
"""
    assert estimated_cycles(hlo) == 5 * 7 + 7


def test_topologies():
    assert chips_of("v5p:2x2x4") == ("v5p", 16) and chips_of("h100:8") == ("h100", 8)
    for chip, shapes in SHAPES.items():
        counts = [chips_of(f"{chip}:{shape}")[1] for shape in shapes]
        assert counts == sorted(set(counts))
    for bad in ("h9:2x2", "v5e", "v5e:2x", "v5e:0x2"):
        with pytest.raises(ValueError, match="for example v5e:2x4 or h100:8"):
            chips_of(bad)


@pytest.mark.parametrize(
    "arguments, fits, expected",
    [
        (["--topology", "h100:2"], 0, "h100:1"),
        (["--topology", "h100:2", "--shard-weights"], 0, "h100:1"),
        (["--topology", "v6e:1x1", "--model", "wan-14b", "--no-compile"], 1,
         "GiB too little, of 31.25 GiB"),
        (["--topology", "h100:2", "--policy", "head-forcing"], 0,
         "Without --roles: in the shares that Head Forcing's paper found"),
        (["--topology", "h100:2", "--policy", "head-forcing"], 0,
         "HeadForcing(roles=72 local, 90 anchor, 198 memory, episodic_size=5,"),
        (["--topology", "h100:2", "--policy", "full", "--seconds", "60"], 0,
         "FullCache(capacity=243)"),
        (["--topology", "h100:2", "--policy", "full", "--capacity", "63"], 0,
         "FullCache(capacity=63)"),
    ],
)  # fmt: skip
def test_a_plan_by_formulas(arguments, fits, expected, capsys):
    assert cli.main(["plan", *arguments]) == fits
    printed = " ".join(capsys.readouterr().out.split())
    assert expected in printed and "temporaries, by formula" in printed


@pytest.mark.parametrize(
    "more, helps", [([], True), (["--shard-weights"], False), (["--policy", "full"], False)]
)
def test_weights_in_parts_are_suggested_where_they_help(more, helps, capsys):
    large = ["--topology", "v5e:2x4", "--model", "wan-14b", "--no-compile", "--seconds", "60"]
    assert cli.main(["plan", *large, *more]) == (0 if "--shard-weights" in more else 1)
    printed = capsys.readouterr().out
    assert ("--shard-weights would do, with 6.84 GiB left" in printed) == helps
    assert ("does not fit: " in printed) == ("--shard-weights" not in more)


@pytest.mark.parametrize(
    "said, status, shown",
    [
        ("RESOURCE_EXHAUSTED: Ran out of memory on HBM", 1, "the compiler says RESOURCE_EXHAUSTED"),
        ("INTERNAL: Mosaic failed", 2, "whether the run fits is not known: INTERNAL: Mosaic"),
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem", 2, "is not known"),
    ],
)
def test_only_a_lack_of_memory_means_that_a_run_does_not_fit(
    said, status, shown, capsys, monkeypatch
):
    def refused(self):
        raise jax.errors.JaxRuntimeError(said)

    monkeypatch.setattr(PlannedRun, "compiled", refused)
    assert cli.main(["plan", "--topology", "v5e:1x1"]) == status
    printed = "".join(capsys.readouterr())
    assert shown in " ".join(printed.split())
    assert ("does not fit" in printed) == (status == 1)


def test_chips_for_one_video():
    assert mesh_for_one_video(12, 4680, 8) == dict(data=1, heads=4, sequence=2)
    assert mesh_for_one_video(40, 4680, 16) == dict(data=2, heads=8, sequence=1)
    assert mesh_for_one_video(12, 4680, 1) == dict(data=1, heads=1, sequence=1)


def test_latents_of_a_resolution():
    assert latents_of("480x832") == (60, 104)
    for bad in ("480", "480x", "-8x8", "480x830"):
        with pytest.raises(ValueError, match="resolution"):
            latents_of(bad)
    for bad in ("488x840", "480x0"):
        with pytest.raises(ValueError, match="both must be multiples of 16 pixels"):
            latents_of(bad)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--topology", "h9:2x2"], "should be one of v4, v5e, v5p, v6e, a100"),
        (["--topology", "v5e:7x9x3"], "no TPU slice 'v5e:7x9x3'"),
        (["--topology", "h100:8", "--mesh", "heads=4"], "takes 4 devices, but there are 8"),
        (["--topology", "h100:8", "--mesh", "data=8", "--shard-weights"], "each video has one"),
        (["--topology", "h100:8", "--mesh", "heads=8"], "work: data=8; data=4,sequence=2;"),
        (["--policy", "none"], "policies are"),
        (["--policy", "full"], "say its length by --seconds or --capacity"),
        (["--policy", "full", "--capacity", "63", "--seconds", "60"], "this video needs 243"),
        (["--seconds", "-1"], "must be a positive number of seconds"),
        (["--policy", "head-forcing", "--roles", "/none.json"], "/none.json"),
    ],
)
def test_wrong_arguments(arguments, message, capsys):
    assert cli.main(["plan", *arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
