"""The recorded rollouts of the public PyTorch reference, reproduced."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from checkpoints_convert import convert_dit
from tests.models.wan_oracle import WanOracle, rope_factors
from tests.sampling.rollout_oracle import rollout as oracle_rollout
from vidcache_jax.cache import FullCache, SlidingWindow
from vidcache_jax.config import RolloutConfig, WanConfig
from vidcache_jax.sampling.replay import Replay, replay
from vidcache_jax.sampling.schedule import rollout_timesteps

GOLDENS = Path(__file__).parents[2].parent / "shared" / "goldens"

channels_last = lambda x: np.moveaxis(x, -3, -1)
pytestmark = pytest.mark.skipif(
    not GOLDENS.is_dir(), reason=f"the recorded references are not at {GOLDENS}"
)


def close(actual, expected):
    """Measured 2.4e-6 over ten chunks; the recording itself is float32."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5)


@dataclasses.dataclass(frozen=True)
class Golden:
    """One recorded rollout, and ours from the same noise."""

    settings: dict[str, Any]
    arrays: dict[str, np.ndarray]
    config: WanConfig
    replay: Replay

    @property
    def options(self) -> dict[str, Any]:
        s = self.settings
        return dict(frames_per_chunk=s["chunk"], denoise_timesteps=tuple(s["steps"]),
                    timestep_shift=s["shift"], context_timestep=s["context_noise"])  # fmt: skip

    @property
    def layout(self) -> list[int]:
        """Frames in the reference's buffer after the last chunk: the sink, then the latest."""
        frames, policy = self.settings["frames"], self.settings["policy"]
        if policy["kind"] == "full":
            return list(range(frames))
        recent = policy["window"] - policy["sink"]
        return [*range(policy["sink"]), *range(frames - recent, frames)]


def run(name: str) -> Golden:
    cases = json.loads((GOLDENS / "cases.json").read_text())
    # Tuples by hand: annotations are checked in tests, and JSON has lists.
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in cases["config"].items()}
    settings, config = cases["cases"][name], WanConfig.from_dict(fields)
    arrays = load_file(GOLDENS / f"{name}.safetensors")
    params = convert_dit(GOLDENS / "model.safetensors", config)
    if settings["policy"]["kind"] == "full":
        policy = FullCache(settings["frames"])
    else:
        window = settings["policy"]
        policy = SlidingWindow(window["window"], window["sink"], rope="absolute")
    golden = Golden(settings, arrays, config, None)  # type: ignore[arg-type]
    result = replay(
        params, config, policy, noise=arrays["noise"], renoise=arrays["renoise"],
        text_embeds=arrays["text"], **golden.options,
    )  # fmt: skip
    return dataclasses.replace(golden, replay=result)


@pytest.fixture(scope="module", params=["full", "window", "window_sink"])
def golden(request):
    return run(request.param)


def test_latents(golden):
    close(golden.replay.latents, golden.arrays["latents"])
    assert golden.replay.latents.shape[1] == golden.settings["frames"]


def test_flow_of_every_first_pass(golden):
    close(golden.replay.flow_first, golden.arrays["flow_first"])


def test_timesteps(golden):
    timesteps = rollout_timesteps(RolloutConfig(**golden.options))
    np.testing.assert_allclose(timesteps, golden.arrays["timesteps"], rtol=0, atol=1e-4)


def slots_of(golden):
    """Our slot of each frame of the reference's buffer, the same in all layers."""
    held = np.asarray(golden.replay.cache.frame_index)
    assert (held == held[:1, :1]).all()
    slots = [int(np.flatnonzero(held[0, 0] == frame)[0]) for frame in golden.layout]
    assert sorted(slots) == list(range(held.shape[-1]))
    return slots


def by_reference_layout(golden, stored):
    """[L, B, N, S, H] with slots in our order -> [L, B, tokens, N, H] in the reference's."""
    layers, batch, heads, tokens, size = stored.shape
    slots = slots_of(golden)
    frames = np.asarray(stored, np.float64).reshape(layers, batch, heads, len(slots), -1, size)
    ordered = frames[:, :, :, slots].reshape(layers, batch, heads, tokens, size)
    return ordered.transpose(0, 1, 3, 2, 4)


def test_cached_values(golden):
    values = by_reference_layout(golden, golden.replay.cache.v)
    close(values, golden.arrays["cache_v_end"])


def test_cached_keys(golden):
    """The reference stores rotated keys; ours are rotated here, each frame at its own number."""
    keys = by_reference_layout(golden, golden.replay.cache.k)
    grid = golden.config.token_grid(golden.settings["h"], golden.settings["w"])
    factors = rope_factors(golden.config.head_dim, golden.layout, *grid)[:, None]
    turned = (keys[..., 0::2] + 1j * keys[..., 1::2]) * factors
    keys = np.stack([turned.real, turned.imag], axis=-1).reshape(keys.shape)
    close(keys, golden.arrays["cache_k_end"])


def test_the_oracle_of_the_other_tests_reproduces_the_reference(golden):
    """So that machines without the recordings compare with the reference too, by proxy."""
    arrays, settings = golden.arrays, golden.settings
    oracle = WanOracle(load_file(GOLDENS / "model.safetensors"), golden.config)
    window = {k: v for k, v in settings["policy"].items() if k != "kind"}
    latents, flow_first, stored = oracle_rollout(
        oracle, channels_last(arrays["noise"][0]), channels_last(arrays["renoise"][:, :, 0]),
        arrays["text"][0], steps=settings["steps"], shift=settings["shift"],
        context=settings["context_noise"], chunk=settings["chunk"], **window,
    )  # fmt: skip
    close(latents, channels_last(arrays["latents"][0]))
    close(flow_first, channels_last(arrays["flow_first"][:, 0]))
    for layer, frames in enumerate(stored):
        values = np.concatenate([frames[frame][1] for frame in golden.layout])
        expected = arrays["cache_v_end"][layer, 0].reshape(values.shape)
        close(values, expected)
