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
from vidcache_jax.cache import CachePolicy, FullCache, SlidingWindow, TetherCache
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
    def rotated(self) -> bool:
        """Whether the reference stores its keys rotated."""
        return self.settings["policy"]["kind"] != "tethercache"

    def layout(self, layer: int) -> list[int]:
        """Frames in the reference's buffer after the last chunk: sink, memory, latest."""
        frames, policy = self.settings["frames"], self.settings["policy"]
        if policy["kind"] == "full":
            return list(range(frames))
        memory = self.arrays["memory_index"][-1, layer].tolist() if not self.rotated else []
        recent = policy["window"] - policy["sink"] - len(memory)
        return [*range(policy["sink"]), *memory, *range(frames - recent, frames)]


def policy_of(settings: dict[str, Any]) -> CachePolicy:
    match settings["policy"]:
        case {"kind": "full"}:
            return FullCache(settings["frames"])
        case {"kind": "window", "window": window, "sink": sink}:
            return SlidingWindow(window, sink, rope="absolute")
        case {"window": window, "sink": sink, "recent": recent, "alpha": alpha, "tau": tau,
              "temperature": temperature}:  # fmt: skip
            return TetherCache(sink, window - sink - recent, recent, alpha, tau, temperature)
    raise ValueError(settings["policy"])


def run(name: str) -> Golden:
    cases = json.loads((GOLDENS / "cases.json").read_text())
    # Tuples by hand: annotations are checked in tests, and JSON has lists.
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in cases["config"].items()}
    settings, config = cases["cases"][name], WanConfig.from_dict(fields)
    arrays = load_file(GOLDENS / f"{name}.safetensors")
    params = convert_dit(GOLDENS / "model.safetensors", config)
    policy = policy_of(settings)
    golden = Golden(settings, arrays, config, None)  # type: ignore[arg-type]
    result = replay(
        params, config, policy, noise=arrays["noise"], renoise=arrays["renoise"],
        text_embeds=arrays["text"], **golden.options,
    )  # fmt: skip
    return dataclasses.replace(golden, replay=result)


WINDOWS = ["full", "window", "window_sink"]
TETHERS = ["tethercache", "tethercache_paper", "tethercache_grab_only"]


@pytest.fixture(scope="module", params=WINDOWS + TETHERS)
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


def test_frames_in_memory(golden):
    if golden.rotated:
        assert golden.replay.memory_index is None
    else:
        assert golden.replay.memory_index.dtype == np.int32
        assert golden.replay.memory_index.tolist() == golden.arrays["memory_index"].tolist()


def by_reference_layout(golden, name):
    """Stored k or v with slots in our order, [L, B, N, S, H] -> [L, B, tokens, N, H] in theirs."""
    cache = golden.replay.cache
    held = cache if golden.rotated else cache.slots
    stored, index = np.asarray(getattr(held, name), np.float64), np.asarray(held.frame_index)
    layers, batch, heads, tokens, size = stored.shape
    frames = stored.reshape(layers, batch, heads, index.shape[-1], -1, size)
    ordered = []
    for layer in range(layers):
        slots = [index[layer, 0].tolist().index(frame) for frame in golden.layout(layer)]
        assert (index[layer] == index[layer, :1]).all()
        assert sorted(slots) == list(range(index.shape[-1]))
        ordered.append(frames[layer][:, :, slots].reshape(batch, heads, tokens, size))
    return np.stack(ordered).transpose(0, 1, 3, 2, 4)


def test_cached_values(golden):
    close(by_reference_layout(golden, "v"), golden.arrays["cache_v_end"])


def test_cached_keys(golden):
    """Where the reference stores rotated keys, ours are rotated here, each at its frame number."""
    keys = by_reference_layout(golden, "k")
    if golden.rotated:
        grid = golden.config.token_grid(golden.settings["h"], golden.settings["w"])
        factors = rope_factors(golden.config.head_dim, golden.layout(0), *grid)[:, None]
        turned = (keys[..., 0::2] + 1j * keys[..., 1::2]) * factors
        keys = np.stack([turned.real, turned.imag], axis=-1).reshape(keys.shape)
    close(keys, golden.arrays["cache_k_end"])


def test_the_oracle_of_the_other_tests_reproduces_the_reference(golden):
    """So that machines without the recordings compare with the reference too, by proxy.

    This one knows windows; that of TetherCache is compared with it in `tests/cache`.
    """
    if not golden.rotated:
        return
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
        values = np.concatenate([frames[frame][1] for frame in golden.layout(layer)])
        expected = arrays["cache_v_end"][layer, 0].reshape(values.shape)
        close(values, expected)
