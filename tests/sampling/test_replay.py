"""Replay of recorded noise: PyTorch's layout in and out, clear refusals."""

import dataclasses

import jaxtyping
import numpy as np
import pytest

from tests.models.cases import case
from tests.sampling.rollout_oracle import rollout as oracle_rollout
from vidcache_jax.cache import FullCache, SlidingWindow
from vidcache_jax.sampling.replay import replay

# Sizes that differ from one another, so that a wrong transposition cannot fit.
CASE = case(batch=2, latent_size=(2, 4), num_layers=1)
B, FRAMES, CHUNK, C, Y, X = 2, 6, 3, 3, 2, 4
STEPS = (1000, 500)
zeros = lambda *shape: np.zeros(shape, np.float32)
channels_last = lambda x: np.moveaxis(x, -3, -1)
OPTIONS = dict(denoise_timesteps=STEPS, timestep_shift=3.0, context_timestep=20.0)


def recorded(**changed):
    """Keyword arguments of a replay in PyTorch's layout."""
    return {
        "noise": CASE.normal(1, B, FRAMES, C, Y, X),
        "renoise": CASE.normal(2, 2, 1, B, CHUNK, C, Y, X),
        "text_embeds": CASE.text,
        **OPTIONS,
        **changed,
    }


@dataclasses.dataclass(frozen=True)
class Remembering(SlidingWindow):
    """A window that calls its first two slots a memory."""

    def memory_index(self, cache):
        return cache.frame_index[:, 0, :2]


@pytest.fixture(scope="module")
def result():
    return replay(CASE.params, CASE.config, Remembering(4, 1), **recorded())


def test_equals_plain_loops_in_pytorch_layout(result):
    arguments = recorded()
    assert result.latents.shape == (B, FRAMES, C, Y, X)
    assert result.flow_first.shape == (2, B, CHUNK, C, Y, X)
    for b in range(B):
        latents, flow_first, _ = oracle_rollout(
            CASE.oracle, channels_last(arguments["noise"][b]),
            channels_last(arguments["renoise"][:, :, b]), CASE.text[b],
            steps=STEPS, shift=3.0, context=20.0, chunk=CHUNK, window=4, sink=1, relative=True,
        )  # fmt: skip
        np.testing.assert_allclose(channels_last(result.latents[b]), latents, atol=2e-5)
        np.testing.assert_allclose(channels_last(result.flow_first[:, b]), flow_first, atol=2e-5)


def test_results_are_numpy_and_the_cache_is_the_policys(result):
    assert type(result.latents) is type(result.flow_first) is np.ndarray
    assert result.latents.dtype == result.flow_first.dtype == np.float32
    assert result.cache.k.shape == (1, B, 2, 4 * 2, 12)
    np.testing.assert_array_equal(np.sort(result.cache.frame_index[0, 0]), [0, 3, 4, 5])


def test_memory_index_after_every_chunk(result):
    """[chunks, layers, memory_size]: sink frame 0, then the ring's first slot."""
    assert type(result.memory_index) is np.ndarray
    np.testing.assert_array_equal(result.memory_index, [[[0, 1]], [[0, 4]]])


def test_memory_index_is_none_without_a_memory_and_defaults_are_self_forcings():
    arguments = recorded(renoise=CASE.normal(2, 2, 3, B, CHUNK, C, Y, X))
    for name in OPTIONS:
        del arguments[name]
    result = replay(CASE.params, CASE.config, FullCache(FRAMES), **arguments)
    assert result.memory_index is None
    latents, _, _ = oracle_rollout(
        CASE.oracle, channels_last(arguments["noise"][0]),
        channels_last(arguments["renoise"][:, :, 0]), CASE.text[0],
        steps=(1000, 750, 500, 250), shift=5.0, context=0.0, chunk=3,
    )  # fmt: skip
    np.testing.assert_allclose(channels_last(result.latents[0]), latents, atol=2e-5)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (dict(noise=zeros(FRAMES, C, Y, X)), r"noise of shape \(6, 3, 2, 4\) should have 5 axes"),
        (dict(renoise=zeros(1, B, CHUNK, C, Y, X)), "renoise of shape .* should have 7 axes"),
        (dict(text_embeds=zeros(4, 7)), r"text_embeds of shape \(4, 7\) should have 3 axes"),
        (dict(noise=zeros(B, 5, C, Y, X)), "5 frames of noise do not split into chunks of 3"),
        (dict(noise=zeros(B, 0, C, Y, X)), "0 frames of noise do not split"),
        (dict(noise=zeros(B, FRAMES, 4, Y, X)), "noise has 4 channels, the model in_dim=3"),
        (dict(noise=zeros(B, FRAMES, Y, X, C)), "noise has 2 channels"),
        (dict(renoise=zeros(2, 3, B, CHUNK, C, Y, X)),
         r"renoise has shape \(2, 3, 2, 3, 3, 2, 4\), this rollout needs \(2, 1, 2, 3, 3, 2, 4\)"),
        (dict(renoise=zeros(1, 1, B, CHUNK, C, Y, X)), "renoise has shape"),
        (dict(renoise=zeros(2, 1, B, CHUNK, C, X, Y)), "renoise has shape"),
        (dict(frames_per_chunk=2), "renoise has shape"),
        (dict(denoise_timesteps=(1000,)), "renoise has shape"),
        (dict(denoise_timesteps=(500, 1000)), "must descend"),
        (dict(text_embeds=zeros(1, 4, 7)), "1 prompts for a batch of 2 videos"),
        (dict(text_embeds=zeros(B, 4, 8)), "text embeddings of 4 x 8 do not fit"),
        (dict(text_embeds=zeros(B, 6, 7)), "text embeddings of 6 x 7 do not fit"),
        (dict(noise=zeros(B, FRAMES, C, 3, X),
              renoise=zeros(2, 1, B, CHUNK, C, 3, X)), "latents of 3 x 4 do not split"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(monkeypatch, changed, message):
    # As users run it, without the type checks of the tests.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=message):
        replay(CASE.params, CASE.config, SlidingWindow(4), **recorded(**changed))


def test_a_policy_that_is_too_small_is_refused():
    with pytest.raises(ValueError, match="holds 5 latent frames, but this video needs 6"):
        replay(CASE.params, CASE.config, FullCache(5), **recorded())
    with pytest.raises(ValueError, match="too few for a chunk of 3"):
        replay(CASE.params, CASE.config, SlidingWindow(3, 1), **recorded())
