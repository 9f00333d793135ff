"""A plan made for eight CPU devices, where all of it can be counted by hand."""

import functools

import jax
import jax.numpy as jnp
import pytest

from vidcache_jax import cli
from vidcache_jax.cache import SlidingWindow
from vidcache_jax.commands.plan import latents_of, mesh_for_one_video
from vidcache_jax.config import RolloutConfig, WanConfig
from vidcache_jax.models import wan_dit
from vidcache_jax.planning.chips import Chip
from vidcache_jax.planning.plan import plan_rollout
from vidcache_jax.sampling.rollout import Rollout
from vidcache_jax.sharding import Layout, make_mesh

CHIP = Chip(tflops=1, hbm_gib=1e-3, hbm_gbs=1, link_gbs=1, linear=0.5, attention=0.25)
CONFIG = WanConfig(
    dim=48, ffn_dim=20, num_heads=4, num_layers=2, freq_dim=8, text_len=5, text_dim=7, in_dim=3,
    out_dim=3,
)  # fmt: skip
ROLLOUT = RolloutConfig(denoise_timesteps=(1000, 500))


@functools.cache
def planned(shard_weights: bool = False):
    layout = Layout(make_mesh(data=2, heads=4), shard_weights)
    rollout = Rollout(CONFIG, ROLLOUT, SlidingWindow(7, 2), layout)
    return plan_rollout(rollout, 4, (4, 8), CHIP, jnp.bfloat16)


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


def test_chips_for_one_video():
    assert mesh_for_one_video(12, 4680, 8) == dict(data=1, heads=4, sequence=2)
    assert mesh_for_one_video(40, 4680, 16) == dict(data=2, heads=8, sequence=1)
    assert mesh_for_one_video(12, 4680, 1) == dict(data=1, heads=1, sequence=1)


def test_latents_of_a_resolution():
    assert latents_of("480x832") == (60, 104)
    for bad in ("480", "480x", "-8x8", "480x830"):
        with pytest.raises(ValueError, match="resolution"):
            latents_of(bad)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--topology", "h9:2x2"], "should begin with one of v4, v5e, v5p, v6e"),
        (["--topology", "v5e:7x9x3"], "no TPU slice 'v5e:7x9x3'"),
        (["--policy", "none"], "policies are"),
        (["--policy", "head-forcing", "--roles", "/none.json"], "/none.json"),
    ],
)
def test_wrong_arguments(arguments, message, capsys):
    assert cli.main(["plan", *arguments]) == 2
    assert message in capsys.readouterr().err.replace("\n", " ")
