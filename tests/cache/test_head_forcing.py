import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.cache.head_oracle import HeadOracle
from vidcache_jax.cache import CacheSpec, FullCache, HeadForcing, HeadRoles, SlidingWindow
from vidcache_jax.cache.head_roles import ROLES
from vidcache_jax.testing import Trial, assert_close, random_chunk
from vidcache_jax.testing.trial import chunk_of

MIXED = HeadRoles((("local", "memory", "anchor"), ("memory", "anchor", "memory")))


def spec_of(policy, frames_per_chunk=3, batch=1, grid=(1, 2), num_heads=None) -> CacheSpec:
    return CacheSpec(
        batch=batch, num_heads=num_heads or policy.roles.shape[1], head_dim=14, grid=grid,
        frames_per_chunk=frames_per_chunk, dtype=jnp.float32,
    )  # fmt: skip


def prompt_of(spec, policy):
    """The mean prompt key of every trial, [heads, H]."""
    zeros = jnp.zeros((spec.batch, spec.num_heads, 1, spec.head_dim))
    chunk = chunk_of(spec, zeros, zeros, zeros, jnp.int32(0))
    keys = np.asarray(chunk.text_k[0], np.float64)
    if policy.prompt_source == "directions":
        keys /= np.linalg.norm(keys, axis=-1, keepdims=True)
    return keys[:, np.asarray(chunk.is_text[0]) | (not policy.mask_padding)].mean(axis=1)


def assert_agrees(policy, spec, num_chunks, seed, token_scores=None):
    """Outputs, positions, episodic memory and counts after every chunk; returns the oracles."""
    trial = Trial(policy, spec, policy.roles.shape[0])
    history = trial.random_history(seed, num_chunks)
    prompt = prompt_of(spec, policy)
    oracles = [
        HeadOracle(spec.grid, policy.roles.table, policy, prompt, token_scores)
        for _ in range(spec.batch)
    ]
    leaves = trial.empty()
    for index, heads in enumerate(history):
        first = index * spec.frames_per_chunk
        leaves, (record,) = trial.run([heads], leaves=leaves, first_frame=first)
        state = jax.tree.unflatten(trial.treedef, leaves)
        for video, oracle in enumerate(oracles):
            q, k, v = heads[:, :, video]
            out = oracle.chunk(q, k, v, spec.frames_per_chunk)
            where = f"chunk {index} of {policy}"
            assert_close(record.attended.denoised[:, video], out, message=f"denoise, {where}")
            assert_close(record.attended.committed[:, video], out, message=f"commit, {where}")
            assert_positions(record.after, oracle, video, first)
            oracle.update(spec.frames_per_chunk)
            entries = np.asarray(state.entry[:, video])
            expected = sorted(entry.number for entry in oracle.episodic)
            for layer in entries:
                assert sorted(layer[layer >= 0]) == expected, where
            assert (state.admitted[:, video] == len(oracle.admitted)).all(), where
            assert (state.merged[:, video] == len(oracle.merged)).all(), where
    return oracles


def assert_positions(view, oracle, video, first):
    for layer, row in enumerate(oracle.roles):
        for head in range(len(row)):
            seen = view.visible[layer, video, head]
            frames = view.position[layer, video, head, seen, 0]
            expected = np.repeat(oracle.positions(layer, head, first), oracle.tokens)
            assert sorted(frames) == sorted(expected)


CASES = {
    "as published": (HeadForcing(MIXED), 3, 25),
    "choosy": (HeadForcing(MIXED, 3, update_interval=1, tau_novel=0.05), 3, 25),
    "small": (HeadForcing(MIXED, 2, 2, 1, 0, 1, tau_novel=0.2), 3, 14),
    "single frames": (HeadForcing(MIXED, 3, 3, 2, 2, 2, overflow="fifo", rope="global"), 1, 20),
    "long windows": (
        HeadForcing(
            MIXED, 3, 4, 5, 2, 1, score_on="raw", prompt_source="directions", mask_padding=False
        ),
        3, 12,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_everything_equals_the_oracle(case):
    policy, chunk, num_chunks = CASES[case]
    (oracle,) = assert_agrees(policy, spec_of(policy, chunk), num_chunks, seed=1)
    # Otherwise the histories are too short to show what is to be shown.
    assert len(oracle.admitted) > policy.episodic_size
    if policy.overflow == "prompt":
        assert len(oracle.merged) >= 2


FIELDS = st.fixed_dictionaries({
    "episodic_size": st.integers(2, 4),
    "fast_size": st.integers(1, 5),
    "anchor_size": st.integers(0, 5),
    "neighbour_size": st.integers(0, 3),
    "update_interval": st.integers(1, 3),
    "admission": st.sampled_from(["novelty", "uniform", "never"]),
    "tau_novel": st.sampled_from([0.0, 0.3, 0.95]),
    "overflow": st.sampled_from(["prompt", "fifo"]),
    "rope": st.sampled_from(["headwise", "global"]),
    "prompt_source": st.sampled_from(["keys", "directions"]),
})  # fmt: skip
ROW = st.tuples(st.sampled_from(ROLES), st.sampled_from(ROLES))


@settings(max_examples=3, phases=[Phase.generate])  # each example compiles: no shrinking
@given(
    roles=st.tuples(ROW, ROW), fields=FIELDS, chunk=st.sampled_from([1, 3, 4]),
    seed=st.integers(0, 2**16),
)  # fmt: skip
def test_any_policy_equals_the_oracle(roles, fields, chunk, seed):
    policy = HeadForcing(HeadRoles(roles), **fields)
    num_chunks = policy.update_interval * (policy.episodic_size + 3) + policy.fast_size // chunk
    assert_agrees(policy, spec_of(policy, chunk, grid=(1, 3)), num_chunks, seed)


def test_videos_of_a_batch_decide_for_themselves():
    policy = HeadForcing(MIXED, 3, update_interval=1, tau_novel=0.05)
    spec = spec_of(policy, batch=3, grid=(2, 2))
    oracles = assert_agrees(policy, spec, 12, seed=0)
    assert len({tuple(oracle.admitted) for oracle in oracles}) == 3
    assert len({tuple(oracle.merged) for oracle in oracles}) == 3


def test_random_tokens_are_chosen_by_candidate_and_layer():
    def scores(candidate, layer):
        return jax.random.uniform(jax.random.fold_in(jax.random.key(candidate), layer), (4,))

    policy = HeadForcing(MIXED, 2, update_interval=1, overflow="random")
    (oracle,) = assert_agrees(policy, spec_of(policy), 9, 0, lambda *x: np.asarray(scores(*x)))
    assert oracle.merged


def test_memory_for_everything_is_full_attention():
    """Every frame a candidate, one a chunk, and room for all."""
    policy = HeadForcing(HeadRoles.uniform("memory", 2, 2), 12, 1, update_interval=1,
                         admission="uniform")  # fmt: skip
    spec = spec_of(policy, 1)
    full, ours = Trial(FullCache(12), spec, 2), Trial(policy, spec, 2)
    history = full.random_history(0, 12)
    for theirs, own in zip(full.run(history)[1], ours.run(history)[1], strict=True):
        assert_close(own.attended.denoised, theirs.attended.denoised)
        assert_close(own.attended.committed, theirs.attended.committed)


@pytest.mark.parametrize(
    ("role", "window"), [("local", SlidingWindow(4)), ("anchor", SlidingWindow(7, 3))]
)
def test_local_and_anchor_heads_are_small_windows(role, window):
    policy = HeadForcing(HeadRoles.uniform(role, 1, 2))
    ours, theirs = (Trial(p, spec_of(policy)) for p in (policy, window))
    history = ours.random_history(0, 7)
    for own, other in zip(ours.run(history)[1], theirs.run(history)[1], strict=True):
        assert_close(own.attended.denoised, other.attended.denoised)
        assert_close(own.attended.committed, other.attended.committed)


def test_permuted_heads_with_their_roles_permute_the_output():
    """And programs of two role tables are one: roles are data."""
    roles, order = HeadRoles((("local", "memory", "anchor", "memory"),) * 2), [2, 3, 1, 0]
    moved = HeadRoles(tuple(tuple(row[n] for n in order) for row in roles.table))
    # Without the prompt's keys, which differ from head to head in every trial.
    policy = HeadForcing(roles, 3, update_interval=1, tau_novel=0.1, overflow="fifo")
    trial = Trial(policy, spec_of(policy), 2)
    history = trial.random_history(0, 12)
    _, records = trial.run(history)
    leaves = Trial(dataclasses.replace(policy, roles=moved), trial.spec, 2).empty()
    _, permuted = trial.run([heads[:, :, :, order] for heads in history], leaves=leaves)
    assert len(trial.traces) == 1
    for one, other in zip(records, permuted, strict=True):
        for name in ("denoised", "committed"):
            expected = getattr(one.attended, name)[:, :, order]
            assert_close(getattr(other.attended, name), expected)


@pytest.fixture(scope="module")
def published():
    """(trial, state after each chunk) of 9 chunks of 3 frames under the paper's sizes."""
    policy = HeadForcing(HeadRoles((("local", "anchor", "memory"),)))
    trial = Trial(policy, spec_of(policy))
    leaves, states = trial.empty(), []
    for index, heads in enumerate(trial.random_history(0, 9)):
        leaves, _ = trial.run([heads], leaves=leaves, first_frame=3 * index, step=trial.viewing)
        states.append(jax.tree.unflatten(trial.treedef, leaves))
    return trial, states


def test_every_third_chunk_has_a_candidate(published):
    trial, states = published
    held = [state.entry[0, 0].tolist() for state in states]
    none = [-1] * 5
    assert held[:5] == [none, none, [3, -1, -1, -1, -1], [3, -1, -1, -1, -1], [3, -1, -1, -1, -1]]
    assert held[5] == held[7] == [3, 12, -1, -1, -1]
    assert held[8] == [3, 12, 21, -1, -1]


def test_heads_re_index_what_they_see(published):
    """Chunk 9, frames 24 to 26, by {frame number: position}; entries are frames 3 and 12."""
    trial, states = published
    layer = jax.tree.map(lambda x: x[0], states[7])
    view = jax.jit(trial.policy.read, static_argnums=2)(layer, jnp.int32(24), 3)
    expected = {
        "local": ({23: 0}, [1, 2, 3]),
        "anchor": ({0: 0, 1: 1, 2: 2, 23: 3}, [4, 5, 6]),
        "memory": ({3: 0, 12: 1, 21: 2, 22: 3, 23: 4}, [5, 6, 7]),
    }
    numbers = np.broadcast_to(layer.slots.frame_index, (3, 11)).copy()
    numbers[2, :2] = [3, 12]
    for head, (past, own) in enumerate(expected.values()):
        seen = np.asarray(view.visible[0, head])
        frames = view.position[0, head, ::2, 0][seen].tolist()
        assert dict(zip(numbers[head, seen].tolist(), frames, strict=True)) == past
        assert view.query_position[0, head, ::2, 0].tolist() == own


def test_memory_is_judged_by_the_latest_prompt(published):
    trial, states = published
    layer = jax.tree.map(lambda x: x[0], states[-1])
    chunk = random_chunk(np.random.default_rng(0), trial.spec, 27)
    other = dataclasses.replace(chunk, text_k=-2 * chunk.text_k, start_frame=jnp.int32(30))
    commit = jax.jit(trial.policy.commit)
    after = commit(commit(layer, chunk), other)
    assert_close(after.prompt[0], -2 * prompt_of(trial.spec, trial.policy))


def test_what_is_allocated_is_the_longest_head(published):
    """11 frames a head: 3,960 at the paper's 360 heads, where roles need 3,096 and a window 7,560.

    Beside them lie pooled keys and tables.
    """
    trial, states = published
    state = states[-1]
    assert state.slots.k.shape == (1, 1, 3, 11 * 2, 14)
    frames = sum(leaf.nbytes for leaf in (state.slots.k, state.slots.v))
    assert frames == 2 * 3 * 11 * 2 * 14 * 4
    real = dataclasses.replace(trial.spec, grid=(30, 52), head_dim=128, dtype=jnp.bfloat16)
    shapes = jax.eval_shape(lambda: jax.tree.leaves(trial.policy.init(real)))
    sizes = [leaf.size * leaf.dtype.itemsize for leaf in shapes]
    assert sum(sizes[2:]) < 1e-3 * sum(sizes[:2])


def test_frame_slots_are_what_the_roles_need():
    papers = HeadRoles.from_numbers(np.repeat([0, 1, 2], [72, 90, 198]).reshape(30, 12))
    assert HeadForcing(papers).frame_slots(3) == 3096
    # Memory heads with the fast window alone.
    assert HeadForcing(papers, fast_size=8, admission="never").frame_slots(3) == 3096
    assert HeadForcing(MIXED, 4, 5, 2, 1).frame_slots(1) == 1 * 2 + 2 * 4 + 3 * 10


def test_roles_are_data_one_program_serves_every_table():
    def program(roles):
        trial = Trial(HeadForcing(roles), spec_of(HeadForcing(roles)), 2)
        heads = trial.random_history(0, 1)[0]
        return jax.jit(trial.views).lower(trial.empty(), heads, jnp.int32(0)).as_text()

    assert program(HeadRoles.uniform("memory", 2, 2)) == program(HeadRoles.uniform("local", 2, 2))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"episodic_size": 1}, "episodic_size=1 must be at least 2, a summary and an entry"),
        ({"fast_size": 0}, "fast_size=0 must be at least 1"),
        ({"anchor_size": -1}, "anchor_size=-1 must be at least 0"),
        ({"neighbour_size": -1}, "neighbour_size=-1 must be at least 0"),
        ({"update_interval": 0}, "update_interval=0 must be at least 1"),
        ({"tau_novel": 1.5}, r"tau_novel=1.5 .* \[-1, 1\]"),
        ({"tau_novel": float("nan")}, "tau_novel=nan"),
    ],
)
def test_impossible_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        HeadForcing(MIXED, **fields)


@pytest.mark.parametrize("field", ["admission", "overflow", "rope", "prompt_source", "score_on"])
def test_other_words_are_refused(field):
    # Past `__init__`, whose annotations already refuse the word while tests check types.
    policy = object.__new__(HeadForcing)
    vars(policy).update(vars(HeadForcing(MIXED)) | {field: "often"})
    with pytest.raises(ValueError, match=f"{field}='often' must be one of"):
        policy.__post_init__()


def test_roles_of_another_shape_are_refused():
    policy = HeadForcing(MIXED)
    with pytest.raises(ValueError, match="3 heads a layer, the model 2: profile this model"):
        policy.init(spec_of(policy, num_heads=2))
    with pytest.raises(ValueError, match="2 layers, the model 4: profile this model"):
        policy.init_layers(spec_of(policy), 4)
    with pytest.raises(ValueError, match="needs the roles.*model.head_roles"):
        HeadForcing().init(spec_of(policy))


def test_roles_of_another_model_are_refused():
    policy = HeadForcing(dataclasses.replace(MIXED, fingerprint="abc"))
    policy.check_model(lambda: "abc")
    with pytest.raises(ValueError, match="fingerprint abc, this one has def: profile this model"):
        policy.check_model(lambda: "def")
    # Roles of no model in particular: nothing is asked.
    HeadForcing(MIXED).check_model(lambda: pytest.fail("asked for the fingerprint"))


def test_defaults_are_the_papers():
    policy = HeadForcing(MIXED)
    sizes = (policy.episodic_size, policy.fast_size, policy.anchor_size, policy.neighbour_size)
    assert (sizes, policy.update_interval, policy.tau_novel) == ((5, 3, 3, 1), 3, 0.95)
    assert policy.kept_slots + policy.ring_slots(3) == 11 and policy.max_frames is None
