"""Configurations: what they accept, what they refuse and in which words."""

import dataclasses
import json

import jaxtyping
import pytest

from vidcache_jax.config import RolloutConfig, WanConfig


@pytest.fixture
def unchecked(monkeypatch):
    """As users run it, without the type checks of the tests: validation must do by itself."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def test_released_sizes():
    small, large = WanConfig.wan_1_3b(), WanConfig.wan_14b()
    assert (small.dim, small.ffn_dim, small.num_heads, small.num_layers) == (1536, 8960, 12, 30)
    assert (large.dim, large.ffn_dim, large.num_heads, large.num_layers) == (5120, 13824, 40, 40)
    for config in (small, large):
        assert config.head_dim == 128
        assert (config.text_dim, config.text_len, config.freq_dim) == (4096, 512, 256)
        assert (config.in_dim, config.out_dim, config.patch_size) == (16, 16, (1, 2, 2))
        assert (config.eps, config.qk_norm, config.cross_attn_norm) == (1e-6, True, True)


def test_tiny_has_heads_of_even_size():
    tiny = WanConfig.tiny()
    assert tiny.head_dim * tiny.num_heads == tiny.dim and tiny.head_dim % 2 == 0
    assert tiny.patch_size == (1, 2, 2)


@pytest.mark.parametrize("make", [WanConfig, RolloutConfig])
def test_frozen_hashable_and_keyword_only(make):
    config, same = make(), make()
    assert config == same and hash(config) == hash(same)
    field = dataclasses.fields(config)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, field, 1)
    with pytest.raises(TypeError):
        make("t2v")


def test_reads_config_json(unchecked):
    text = json.dumps(
        dict(_class_name="WanModel", _diffusers_version="0.30.0", model_type="t2v", dim=24,
             ffn_dim=40, num_heads=3, num_layers=2, eps=1e-5, patch_size=[1, 1, 2],
             window_size=[-1, -1], qk_norm=False)
    )  # fmt: skip
    config = WanConfig.from_dict(json.loads(text))
    assert config == WanConfig(
        dim=24, ffn_dim=40, num_heads=3, num_layers=2, eps=1e-5, patch_size=(1, 1, 2),
        qk_norm=False,
    )  # fmt: skip
    # Lists would have made it unhashable.
    assert hash(config) and config.head_dim == 8


def test_dictionary_round_trip():
    for config in (WanConfig.wan_14b(), WanConfig.tiny()):
        assert WanConfig.from_dict(dataclasses.asdict(config)) == config


def test_unknown_fields_are_named():
    with pytest.raises(ValueError, match=r"unknown WanConfig fields \['heads', 'width'\]"):
        WanConfig.from_dict({"width": 1, "heads": 2, "dim": 1536, "_ignored": 0})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(model_type="i2v"), "model_type='i2v' is not supported"),
        (dict(patch_size=(2, 2, 2)), r"patch_size=\(2, 2, 2\) must be \(1, rows, columns\)"),
        (dict(patch_size=(1, 2)), "patch_size"),
        (dict(patch_size=(1, 0, 2)), "patch_size"),
        (dict(patch_size=(1, 2, -2)), "patch_size"),
        (dict(window_size=(3, 3)), r"window_size=\(3, 3\): limit attention by a cache policy"),
        (dict(text_len=0), "text_len=0 must be positive"),
        (dict(in_dim=0), "in_dim=0"),
        (dict(out_dim=-1), "out_dim=-1"),
        (dict(dim=0), "dim=0"),
        (dict(ffn_dim=0), "ffn_dim=0"),
        (dict(freq_dim=0), "freq_dim=0"),
        (dict(text_dim=0), "text_dim=0"),
        (dict(num_heads=0), "num_heads=0"),
        (dict(num_layers=0), "num_layers=0"),
        (dict(dim=100, num_heads=3), "dim=100 must split into num_heads=3 heads of even size"),
        (dict(dim=9, num_heads=3), "dim=9 must split into num_heads=3"),
        (dict(freq_dim=7), "freq_dim=7 must be even"),
        (dict(in_dim=36), "in_dim=36 and out_dim=16 must be equal"),
    ],
)
def test_impossible_models_are_refused(unchecked, fields, message):
    with pytest.raises(ValueError, match=message):
        WanConfig(**fields)


def test_token_grid():
    assert WanConfig().token_grid(60, 104) == (30, 52)
    assert WanConfig(patch_size=(1, 1, 3)).token_grid(5, 9) == (5, 3)


@pytest.mark.parametrize("size", [(61, 104), (60, 103), (0, 104), (-2, 4)])
def test_sizes_that_do_not_split_are_refused(size):
    with pytest.raises(ValueError, match=f"latents of {size[0]} x {size[1]} do not split"):
        WanConfig().token_grid(*size)


def test_rollout_defaults_are_self_forcing():
    config = RolloutConfig()
    assert config.denoise_timesteps == (1000.0, 750.0, 500.0, 250.0)
    assert (config.frames_per_chunk, config.timestep_shift, config.context_timestep) == (3, 5, 0)


def test_rollout_timesteps_become_a_tuple_of_floats(unchecked):
    config = RolloutConfig(denoise_timesteps=[1000, 500])  # type: ignore[arg-type]
    assert config.denoise_timesteps == (1000.0, 500.0)
    assert all(type(step) is float for step in config.denoise_timesteps)
    assert config == RolloutConfig(denoise_timesteps=(1000.0, 500.0)) and hash(config)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(frames_per_chunk=0), "frames_per_chunk=0 must be at least 1"),
        (dict(denoise_timesteps=()), "must lie in"),
        (dict(denoise_timesteps=(1001,)), "must lie in"),
        (dict(denoise_timesteps=(500, 0)), "must lie in"),
        (dict(denoise_timesteps=(500, 750)), r"\(500.0, 750.0\) must descend"),
        (dict(denoise_timesteps=(500, 500)), "must descend"),
        (dict(timestep_shift=0), "timestep_shift=0 must be positive"),
        (dict(context_timestep=-1), "context_timestep=-1"),
        (dict(context_timestep=1001), "context_timestep=1001"),
    ],
)
def test_impossible_rollouts_are_refused(unchecked, fields, message):
    with pytest.raises(ValueError, match=message):
        RolloutConfig(**fields)


def test_bounds_themselves_are_allowed():
    RolloutConfig(frames_per_chunk=1, denoise_timesteps=(1000,), context_timestep=1000)
