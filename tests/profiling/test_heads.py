"""The profiler finds the roles that a model was built to have."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.toy import toy_model
from vidcache_jax.cache import CacheSpec, HeadRoles, SlidingWindow
from vidcache_jax.models.fingerprint import fingerprint
from vidcache_jax.ops.attention import attention
from vidcache_jax.profiling.heads import HeadProfiler, ProfileSettings
from vidcache_jax.profiling.picture import draw_profile
from vidcache_jax.profiling.shares import MeasuredWindow, shares_of
from vidcache_jax.testing import assert_close, random_chunk

PROMPTS = ("a red circle bounces", "a blue square drifts left")
PLANTED = HeadRoles((("memory", "anchor"), ("local", "memory")))
# A window of three chunks that has slid already when the first chunk is measured.
SETTINGS = ProfileSettings(
    num_chunks=6, sampled_chunks=2, first_sampled=4, window_size=9, alpha_anchor=0.25,
    tau_local=0.25,
)  # fmt: skip


def planted_model():
    """Queries and keys that depend on nothing but the head.

    The slower of two frame rotations turns by 0.01 a frame: ``cos(0.01 distance)`` is largest for
    a query's own frame and, negative, for the one farthest away, and the keys are long enough to
    tell neighbouring frames apart. Queries and keys of memory heads are zero: all keys are equal.
    """
    model = toy_model()
    params = {**model.params, "blocks": {**model.params["blocks"]}}
    attn = {**params["blocks"]["self_attn"]}
    slow, width = 2, 12
    q, k = np.zeros((2, 24), np.float32), np.zeros((2, 24), np.float32)
    for layer, row in enumerate(PLANTED.table):
        for head, role in enumerate(row):
            if role != "memory":
                q[layer, head * width + slow] = 1
                k[layer, head * width + slow] = 1 if role == "local" else -1
    # One channel of 24 is not zero: its root mean square is sqrt(1 / 24).
    length = 1e6 * 12**0.5 / 24
    for name, bias, scale in (("q", q, 1.0), ("k", k, length)):
        attn[name] = {"kernel": jnp.zeros((2, 24, 24)), "bias": jnp.asarray(bias)}
        attn[f"norm_{name}"] = {"scale": jnp.full((2, 24), scale, jnp.float32)}
    params["blocks"]["self_attn"] = attn
    return dataclasses.replace(model, params=params)


@pytest.fixture(scope="module")
def profile():
    profiler = HeadProfiler(planted_model(), PROMPTS, SETTINGS)
    return profiler.profile([*profiler.shares()])


def test_planted_roles_are_found(profile):
    assert profile.roles.table == PLANTED.table
    sink, middle, current = np.moveaxis(profile.mean_shares, -1, 0)
    assert sink[0, 1] > 0.99 and current[1, 0] > 0.99
    # Nine frames, all equal: one the first, five after it, the chunk.
    for layer, head in ((0, 0), (1, 1)):
        assert_close(profile.mean_shares[layer, head], [1 / 9, 5 / 9, 3 / 9])
    assert middle[0, 1] < 0.01 and middle[1, 0] < 0.01


def test_shares_sum_to_one_and_none_is_lost(profile):
    assert profile.shares.shape == (2, 2, 2, 2, 2, 3)
    assert_close(profile.shares.sum(axis=-1), np.ones((2, 2, 2, 2, 2)))
    assert (profile.shares >= 0).all()


def test_planted_roles_are_stable(profile):
    one = {"local": 1.0, "anchor": 1.0, "memory": 1.0}
    assert profile.stability() == {"prompts": one, "chunks": one, "steps": one}


def test_chunks_are_drawn_from_the_third_on_and_again_the_same():
    profiler = HeadProfiler(toy_model(), PROMPTS * 10, ProfileSettings())
    drawn = [profiler.chunks_of(index).tolist() for index in range(20)]
    assert all(row == sorted(set(row)) and len(row) == 3 for row in drawn)
    assert min(map(min, drawn)) >= 3 and max(map(max, drawn)) <= 42
    assert drawn == [profiler.chunks_of(index).tolist() for index in range(20)]
    assert len({tuple(row) for row in drawn}) > 10


def test_the_file_holds_the_roles_and_what_they_were_made_from(profile, tmp_path):
    profile.save(tmp_path / "roles.json")
    assert HeadRoles.load(tmp_path / "roles.json") == profile.roles
    content = json.loads((tmp_path / "roles.json").read_text())
    assert content["fingerprint"] == fingerprint(planted_model().params)
    assert content["prompts"] == [*PROMPTS] and content["settings"]["window_size"] == 9


def test_the_picture_has_a_cell_for_every_head(profile, tmp_path):
    draw_profile(profile, tmp_path / "heads.png")
    with Image.open(tmp_path / "heads.png") as picture:
        pixels = np.asarray(picture)
    # The far ends of the anchor's and the local head's bars are of one colour each.
    anchor, local = pixels[28, 26 + 72 + 60], pixels[28 + 30, 26 + 60]
    assert anchor.tolist() == [222, 120, 40] and local.tolist() == [70, 110, 200]
    with pytest.raises(ValueError, match="must end in .png"):
        draw_profile(profile, tmp_path / "heads.gif")


def test_measuring_changes_nothing():
    """What is taken up is what the plain window's heads take up, at any point of a video."""
    measured, plain = MeasuredWindow(5), SlidingWindow(5, 1)
    spec = CacheSpec(
        batch=2, num_heads=2, head_dim=12, grid=(1, 2), frames_per_chunk=3, dtype=jnp.float32
    )
    rng, layer = np.random.default_rng(0), jnp.int32(1)

    @jax.jit
    def passes(cache, chunk):
        one, two = (
            policy.attend(policy.prepare(cache, chunk.start_frame, 3), layer, chunk, 3)
            for policy in (measured, plain)
        )
        return one, two, plain.update(cache, layer, chunk, 3)[1]

    cache = plain.init_layers(spec, 2)
    for start in (0, 3, 6):
        one, two, cache = passes(cache, random_chunk(rng, spec, start))
        assert_close(one.out, two.out)
        assert (one.note[..., :2].sum() == 0) == (start == 0)


def test_shares_are_those_of_a_dense_softmax():
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(3 * rng.standard_normal((2, 2, n, 8)), jnp.float32) for n in (3, 7, 7))
    ends = [(0, 1), (1, 5), (5, 7)]
    parts = [attention(q, k[:, :, a:b], v[:, :, a:b]) for a, b in ends]
    logits = np.einsum("bnth,bnsh->bnts", *(np.asarray(x, np.float64) for x in (q, k))) / 8**0.5
    weights = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    dense = [weights[..., a:b].sum(axis=-1).mean(axis=-1) for a, b in ends]
    assert_close(shares_of(*parts), np.stack(dense, axis=-1))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_chunks": 4}, "num_chunks=4 leaves fewer than 3 chunks from chunk 3 on"),
        ({"sampled_chunks": 0}, "sampled_chunks=0 must be at least 1"),
        ({"first_sampled": 1}, "first_sampled=1 at least 2: the first chunk has no past"),
    ],
)
def test_impossible_settings_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        ProfileSettings(**fields)


def test_a_bad_prompt_or_window_is_refused_before_any_work():
    with pytest.raises(ValueError, match="no prompts"):
        HeadProfiler(toy_model(), ())
    with pytest.raises(ValueError, match="crimson"):
        HeadProfiler(toy_model(), ("a crimson circle",))
    with pytest.raises(ValueError, match="too few for a chunk of 3"):
        HeadProfiler(toy_model(), PROMPTS, ProfileSettings(window_size=3))


def test_a_fingerprint_tells_parameters_and_not_dtypes():
    params = toy_model().params
    mark = fingerprint(params)
    assert len(mark) == 16 and mark == fingerprint(toy_model().params)
    half = {name: params[name] for name in params}
    half["head"] = {**params["head"], "modulation": params["head"]["modulation"].astype("bfloat16")}
    assert mark == fingerprint(half)
    half["head"] = {**params["head"], "modulation": params["head"]["modulation"] + 1}
    assert mark != fingerprint(half)
