"""What must hold for a policy's methods as programs: C1, C4, C5 and donation (C6)."""

import copy
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from vidcache_jax.testing.history_clauses import compare
from vidcache_jax.testing.tolerances import same_bits
from vidcache_jax.testing.trial import (
    ChunkRecord,
    Heads,
    Trial,
    ViewRecord,
    chunk_of,
    commit_attention,
    quick_jit,
    random_chunk,
)
from vidcache_jax.testing.view_clauses import require

_NEEDS_CONCRETE = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerBoolConversionError,
    jax.errors.TracerIntegerConversionError,
)


def check_structure(trial: Trial) -> None:
    """C4 by abstract evaluation: a chunk leaves the cache's structure, shapes and dtypes alone.

    C5: an allocated cache has the bytes that its abstract shapes claim.
    """
    policy, spec = trial.policy, trial.spec
    try:
        equal = {policy: True}.get(copy.deepcopy(policy))
    except TypeError as error:
        raise AssertionError(f"C4: {policy} is not hashable, so jit cannot key on it") from error
    require(equal, "C4", f"{policy} does not equal its copy: each instance would be compiled anew")
    cache = policy.init(spec)
    leaves, treedef = jax.tree.leaves(cache), jax.tree.structure(cache)
    require(
        [isinstance(leaf, jax.Array) for leaf in leaves],
        "C5",
        f"the cache holds leaves that are no arrays: {[type(leaf).__name__ for leaf in leaves]}",
    )
    claimed = jax.eval_shape(lambda: jax.tree.leaves(policy.init(spec)))
    require(
        [x.nbytes for x in leaves] == [x.size * x.dtype.itemsize for x in claimed],
        "C5",
        "init allocates other sizes than it claims under jax.eval_shape",
    )

    def commit(leaves, chunk):
        updated = policy.commit(jax.tree.unflatten(treedef, leaves), chunk)
        _require_same(treedef, jax.tree.structure(updated), "commit", "structure")
        return jax.tree.leaves(updated)

    def evict(leaves, chunk):
        cache = jax.tree.unflatten(treedef, leaves)
        view = policy.read(cache, chunk.start_frame, spec.frames_per_chunk)
        updated = policy.evict(cache, chunk, commit_attention(chunk.q, view))
        _require_same(treedef, jax.tree.structure(updated), "evict", "structure")
        return jax.tree.leaves(updated)

    def settle(leaves, start_frame):
        updated = policy.settle(jax.tree.unflatten(treedef, leaves), start_frame)
        _require_same(treedef, jax.tree.structure(updated), "settle", "structure")
        return jax.tree.leaves(updated)

    chunk = random_chunk(np.random.default_rng(0), spec)
    start, stacked = jnp.zeros((), jnp.int32), trial.empty()
    try:
        after_commit = jax.eval_shape(commit, leaves, chunk)
        after_evict = jax.eval_shape(evict, leaves, chunk)
        after_settle = jax.eval_shape(settle, stacked, start)
        jax.eval_shape(trial.views, stacked, trial.random_history(0, 1)[0], start)
    except _NEEDS_CONCRETE as error:
        raise AssertionError(
            f"C4: the policy asks for a concrete value of a traced array, so that every chunk "
            f"would be compiled anew: {error}"
        ) from error
    _require_same(_types(leaves), _types(after_commit), "commit", "shapes and dtypes")
    _require_same(_types(leaves), _types(after_evict), "evict", "shapes and dtypes")
    _require_same(_types(stacked), _types(after_settle), "settle", "shapes and dtypes")


def _types(leaves) -> list[str]:
    return [f"{x.dtype.name}{[*x.shape]}{' weak' if x.weak_type else ''}" for x in leaves]


def _require_same(before, after, method: str, what: str) -> None:
    require(before == after, "C4", f"{method} changes the cache's {what}: {before} -> {after}")


def check_without_jit(trial: Trial, history: list[Heads], records: list[ChunkRecord]) -> None:
    """C1 and C8 where nothing is traced.

    C1: reading changes no bit of the cache and nothing hidden: reading twice shows the same,
    committing twice gives the same, and neither touches the cache that was passed in.
    C8: concrete frame numbers do what traced ones do, the bookkeeping exactly.
    """

    def step(leaves, heads, start_frame):
        layers = [
            _eager_layer(trial, [leaf[layer] for leaf in leaves], heads[:, layer],
                         start_frame)
            for layer in range(trial.num_layers)
        ]  # fmt: skip
        leaves, record = jax.tree.map(lambda *xs: jnp.stack(xs), *layers)
        cache = trial.policy.settle(jax.tree.unflatten(trial.treedef, leaves), start_frame)
        return jax.tree.leaves(cache), record

    _, eager = trial.run(history, step=step)
    compare(trial, records, eager, "C8", "a run without jit")


def _eager_layer(trial: Trial, leaves, heads, start_frame) -> tuple[list, ChunkRecord]:
    policy, num_frames = trial.policy, trial.spec.frames_per_chunk
    cache = jax.tree.unflatten(trial.treedef, leaves)
    q, k, v = jnp.asarray(heads)
    chunk = chunk_of(trial.spec, q, k, v, start_frame)
    saved = _bits(cache)
    before = policy.read(cache, start_frame, num_frames)
    shown = _bits(before)
    require(saved == _bits(cache), "C1", f"read before frame {start_frame} changed the cache")
    again = policy.read(cache, start_frame, num_frames)
    require(
        shown == _bits(again) == _bits(before),
        "C1",
        f"two reads before frame {start_frame} differ: a denoise pass changes what the next sees",
    )
    updated = policy.commit(cache, chunk)
    require(
        saved == _bits(cache), "C1", f"commit of frame {start_frame} changed its argument in place"
    )
    require(
        _bits(updated) == _bits(policy.commit(cache, chunk)),
        "C1",
        f"two commits of frame {start_frame} to one cache differ",
    )
    after = policy.read(updated, start_frame, num_frames)
    record = ChunkRecord(ViewRecord.of(before), ViewRecord.of(after), None)
    committed, attended = _bits(updated), commit_attention(q, after)
    evicted = policy.evict(updated, chunk, attended)
    require(
        committed == _bits(updated), "C1", f"evict after frame {start_frame} changed its argument"
    )
    require(
        _bits(evicted) == _bits(policy.evict(updated, chunk, attended)),
        "C1",
        f"two evictions after frame {start_frame} from one cache differ",
    )
    return jax.tree.leaves(evicted), record


def _bits(tree) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def check_donation(trial: Trial, history: list[Heads]) -> None:
    """C6: a donated cache gives the bits that a kept one gives. C5: and keeps its size."""
    # A buffer that a policy only overwrites is donated too.
    step = quick_jit(trial.views, donate_argnums=0, keep_unused=True)
    kept_leaves, kept = trial.run(history, step=trial.viewing)
    leaves = trial.empty()
    nbytes = sum(leaf.nbytes for leaf in leaves)
    with warnings.catch_warnings():
        # JAX warns of donated buffers that it could not use; they are looked at below.
        warnings.simplefilter("ignore")
        given_leaves, given = trial.run(history, leaves=leaves, step=step)
    require([leaf.is_deleted() for leaf in leaves], "C6", "a buffer of the donated cache is unused")
    for index, (one, other) in enumerate(zip(kept, given, strict=True)):
        require(_bits(one) == _bits(other), "C6", f"chunk {index} differs under donation")
    require(
        [same_bits(a, b) for a, b in zip(kept_leaves, given_leaves, strict=True)],
        "C6",
        "the cache differs under donation",
    )
    require(sum(x.nbytes for x in given_leaves) == nbytes, "C5", "the cache's size changed")
