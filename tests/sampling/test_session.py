"""A session makes the same video however it is cut, in one program, within its cache."""

import contextlib
import dataclasses
from collections.abc import Iterator

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vidcache_jax as vj
from tests.toy import toy_model, toy_wan_model
from vidcache_jax.models.codec import to_uint8
from vidcache_jax.sampling.session import chunks_for

pytestmark = pytest.mark.usefixtures("quick")
PROMPT = "a red circle bounces"
POLICIES = {
    "full": vj.FullCache(capacity=150),
    "sliding-window": vj.SlidingWindow(window_size=7, sink_size=2),
}


def video(session: vj.Session, seconds: float) -> np.ndarray:
    return np.concatenate(list(session.generate(seconds)))


@pytest.fixture(scope="module")
def model() -> vj.VideoModel:
    return toy_model()


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
    """Names of the programs that are compiled meanwhile."""
    compiled = []

    def listen(event: str, duration_secs: float, **about: str | int) -> None:
        if "backend_compile" in event:
            compiled.append(str(about.get("fun_name")))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield compiled
    finally:
        jax.monitoring.clear_event_listeners()


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES.keys())
def test_one_program_over_fifty_chunks(model, policy):
    # Of a size that no other test has compiled for.
    model = dataclasses.replace(model, latent_size=(2, 6))
    with compilations() as compiled:
        chunks = vj.Session(model, policy, prompt=PROMPT).generate(50 * 3 / 8)
        next(chunks)
        after_first = len(compiled)
        assert after_first > 0
        assert sum(1 for _ in chunks) == 49
        assert len(compiled) == after_first


def test_a_codec_with_a_shorter_first_chunk_has_two_programs_and_the_chunk_one():
    # Of a size that no other test has compiled for.
    model = dataclasses.replace(toy_wan_model(), latent_size=(4, 2))
    policy = vj.SlidingWindow(window_size=6)
    with compilations() as compiled:
        session = vj.Session(model, policy, prompt=PROMPT)
        assert [len(frames) for frames in session.generate(20 / 8)] == [5, 6, 6, 6]
    assert compiled.count("jit(make_chunk)") == 1
    assert compiled.count("jit(decode_chunk)") == 2
    # Continued, a second is a second: no frame is lost to the short first chunk.
    assert [len(frames) for frames in session.generate(6 / 8)] == [6]


def test_another_prompt_compiles_nothing(model):
    """Whatever its length: text encoders return as many rows as it has tokens."""
    lengths = iter((3, 7))
    embed = lambda prompt: np.full((next(lengths), model.config.text_dim), 0.1, np.float32)
    model = dataclasses.replace(model, embed_text=embed)
    video(vj.Session(model, POLICIES["sliding-window"], prompt="one"), 0.3)
    with compilations() as compiled:
        video(vj.Session(model, POLICIES["sliding-window"], prompt="another"), 0.3)
    assert compiled == []


def test_frames_are_uint8_images_that_change(model):
    frames = video(vj.Session(model, POLICIES["full"], prompt=PROMPT), 1.0)
    assert frames.dtype == np.uint8
    assert frames.shape == (9, 16, 32, 3)  # 8 frames, rounded up to chunks of 3
    assert all((a != b).any() for a, b in zip(frames, frames[1:], strict=False))


def test_same_seed_same_video_in_one_go_or_in_pieces(model):
    policy = POLICIES["sliding-window"]
    whole = video(vj.Session(model, policy, prompt=PROMPT, seed=5), 18 / 8)
    session = vj.Session(model, policy, prompt=PROMPT, seed=5)
    pieces = np.concatenate([video(session, 6 / 8), video(session, 12 / 8)])
    np.testing.assert_array_equal(whole, pieces)
    other = video(vj.Session(model, policy, prompt=PROMPT, seed=6), 18 / 8)
    assert (whole != other).any()


def test_a_prompt_changes_the_video_also_between_chunks_and_the_cache_stays(model):
    other, videos = "a blue square circles", []
    for prompts in ((PROMPT, PROMPT), (PROMPT, other), (other, other)):
        session = vj.Session(model, POLICIES["full"], prompt=prompts[0])
        first = video(session, 3 / 8)
        before = [np.asarray(leaf) for leaf in jax.tree.leaves(session.cache)]
        with compilations() as compiled:
            session.change_prompt(prompts[1])
            chex.assert_trees_all_equal(jax.tree.leaves(session.cache), before)
            videos.append([first, video(session, 3 / 8)])
        assert compiled == []
    same, changed, another = videos
    np.testing.assert_array_equal(changed[0], same[0])
    assert (another[0] != same[0]).any()
    assert (changed[1] != same[1]).any() and (changed[1] != another[1]).any()


@pytest.mark.parametrize("frames", [-3, 4])
def test_refuses_to_recache_parts_of_chunks(model, frames):
    with pytest.raises(ValueError, match=f"recache_frames={frames} must be whole chunks of 3"):
        vj.Session(model, POLICIES["full"], prompt=PROMPT, recache_frames=frames)


def test_refuses_a_policy_made_for_another_model(model):
    policy = vj.HeadForcing(vj.HeadRoles.uniform("memory", 2, 2, "0123"))
    with pytest.raises(ValueError, match="fingerprint 0123, this one has"):
        vj.Session(model, policy, prompt=PROMPT)


def test_policy_changes_only_what_is_forgotten(model):
    """Until a window of 7 overflows it gives the full cache's video, and then no longer."""
    window = vj.SlidingWindow(window_size=7)
    full = video(vj.Session(model, vj.FullCache(capacity=12), prompt=PROMPT), 12 / 8).astype(int)
    short = video(vj.Session(model, window, prompt=PROMPT), 12 / 8).astype(int)
    assert abs(full[:6] - short[:6]).max() <= 1
    assert abs(full[9:] - short[9:]).max() > 1


def test_cache_reports_its_buffers_and_fill(model):
    session = vj.Session(model, vj.SlidingWindow(window_size=6), prompt=PROMPT)
    config = model.config
    tokens = 2  # of 2 x 4 latents in patches of 2 x 2
    kv = 2 * config.num_layers * 6 * tokens * config.dim * 4
    assert session.cache_nbytes == kv + config.num_layers * 6 * 4
    assert session.cache_fill == 0
    video(session, 3 / 8)
    assert session.cache_fill == pytest.approx(0.5)
    video(session, 6 / 8)
    assert session.cache_fill == pytest.approx(1.0)
    assert session.chunks_made == 3


def test_latents_are_those_of_the_last_chunk(model):
    session = vj.Session(model, POLICIES["sliding-window"], prompt=PROMPT)
    with pytest.raises(ValueError, match="before the first chunk"):
        _ = session.latents
    for frames in session.generate(6 / 8):
        latents = jnp.asarray(session.latents)[None]
        decoded, _ = model.codec.decode(model.codec_params, latents, ())
        np.testing.assert_allclose(frames, np.asarray(to_uint8(decoded[0])), atol=1)


def test_cache_is_donated(model):
    session = vj.Session(model, POLICIES["sliding-window"], prompt=PROMPT)
    before = jax.tree.leaves(session.cache)
    video(session, 3 / 8)
    assert all(leaf.is_deleted() for leaf in before)


@pytest.mark.parametrize("frames_per_chunk", [1, 4])
def test_other_chunk_sizes(frames_per_chunk):
    model = toy_model(frames_per_chunk=frames_per_chunk)
    session = vj.Session(model, vj.SlidingWindow(window_size=6, sink_size=1), prompt=PROMPT)
    assert video(session, 8 / 8).shape[0] == 8


def test_refuses_what_a_full_cache_cannot_hold_before_any_work(model):
    session = vj.Session(model, vj.FullCache(capacity=9), prompt=PROMPT)
    with pytest.raises(ValueError, match=r"holds 9 latent frames, but this video needs 12.*raise"):
        session.generate(12 / 8)
    video(session, 9 / 8)
    with pytest.raises(ValueError, match="holds 9 latent frames"):
        session.generate(1 / 8)


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_refuses_impossible_lengths(model, seconds):
    session = vj.Session(model, POLICIES["full"], prompt=PROMPT)
    with pytest.raises(ValueError, match="must be a positive number of seconds"):
        session.generate(seconds)


def test_refuses_a_policy_too_small_for_a_chunk(model):
    with pytest.raises(ValueError, match="too few for a chunk of 3"):
        vj.Session(model, vj.SlidingWindow(window_size=4, sink_size=2), prompt=PROMPT)


@pytest.mark.parametrize(
    ("seconds", "chunks"), [(0.01, 1), (3 / 8, 1), (0.4, 2), (30, 80), (3600, 9600)]
)
def test_chunks_for(model, seconds, chunks):
    assert chunks_for(seconds, model) == chunks
