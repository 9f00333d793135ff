"""What must hold over histories of many chunks: C3, C7 and C8."""

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np

from vidcache_jax.testing.tolerances import assert_close, same_bits
from vidcache_jax.testing.trial import ChunkRecord, Heads, Trial, ViewRecord, quick_jit
from vidcache_jax.testing.view_clauses import check_chunk, require


def check_views(
    trial: Trial,
    history: list[Heads],
    records: Iterable[ChunkRecord],
    distinct_positions: bool,
) -> None:
    """C2, C3 and C8 of every chunk of a history."""
    for index, (heads, record) in enumerate(zip(history, records, strict=True)):
        past_frames = index * trial.spec.frames_per_chunk
        try:
            check_chunk(record, heads, trial.spec, past_frames, distinct_positions)
        except AssertionError as error:
            raise AssertionError(f"{error} (chunk {index} of {trial.spec})") from error


def check_garbage(
    trial: Trial, history: list[Heads], records: list[ChunkRecord], garbage: float
) -> None:
    """C3: keys and values of empty and hidden tokens change no bit of anything.

    They are spoilt twice: in every view, wherever it says invisible, and in the empty cache
    itself, in every buffer that the views' keys and values come from.
    """
    leaves = [
        jnp.full_like(leaf, garbage) if stores else leaf
        for leaf, stores in zip(trial.empty(), trial.stores_tokens, strict=True)
    ]
    _, spoilt = trial.run(history, leaves=leaves, step=trial.attending(garbage))
    for index, (clean, other) in enumerate(zip(records, spoilt, strict=True)):
        for name, one, two in _observed(clean, other):
            require(
                same_bits(one, two),
                "C3",
                f"{garbage} in empty or hidden tokens changes {name} of chunk {index}",
            )


def check_batch(
    trial: Trial, history: list[Heads], records: list[ChunkRecord], video: int, other: float
) -> None:
    """C7: a video keeps every bit whatever becomes of the others in its batch.

    The same program runs both times, so that no rounding can differ.
    """
    own = (np.arange(trial.spec.batch) == video)[:, None, None, None]
    fill = np.asarray(other, jnp.dtype(trial.spec.dtype))
    _, changed = trial.run([np.where(own, heads, fill) for heads in history])
    for index, pair in enumerate(zip(records, changed, strict=True)):
        for name, one, two in _observed(*(_videos(record, [video]) for record in pair)):
            require(
                same_bits(one, two),
                "C7",
                f"{name} of chunk {index} changes with what other videos of the batch hold",
            )


def check_alone(trial: Trial, history: list[Heads], records: list[ChunkRecord]) -> None:
    """C7: a video made alone and one of a permuted batch are the video of the batch.

    Other batch sizes are other programs, in which sums may be taken in another order: numbers
    are compared within tolerance, the bookkeeping exactly.
    """
    order = [*range(1, trial.spec.batch), 0]
    _, permuted = trial.run([heads[:, :, order] for heads in history])
    compare(trial, map(lambda r: _videos(r, order), records), permuted, "C7", "a permuted batch")
    alone = trial.with_batch(1)
    _, single = alone.run([heads[:, :, :1] for heads in history], step=alone.viewing)
    compare(trial, (_videos(record, [0]) for record in records), single, "C7", "a batch of one")


def check_mapped(trial: Trial, history: list[Heads], records: list[ChunkRecord]) -> None:
    """C7: `vmap` and `pmap` over a further leading axis give what each entry gives by itself."""
    reverse = history[::-1]
    _, reversed_records = trial.run(reverse)
    both = [np.stack(pair) for pair in zip(history, reverse, strict=True)]
    leaves = [jnp.stack([leaf, leaf]) for leaf in trial.empty()]
    axes = (0, 0, None)
    mapped: list[tuple[str, Callable]] = [("vmap", quick_jit(jax.vmap(trial.views, in_axes=axes)))]
    if jax.local_device_count() >= 2:
        pmapped = jax.pmap(trial.views, in_axes=axes, devices=jax.local_devices()[:2])
        mapped.append(("pmap", pmapped))
    for name, step in mapped:
        _, outputs = trial.run(both, leaves=leaves, step=step)
        for entry, expected in enumerate((records, reversed_records)):
            actual = [jax.tree.map(lambda x, e=entry: x[e], record) for record in outputs]
            compare(trial, expected, actual, "C7", name)


def check_late_start(trial: Trial, history: list[Heads], distinct_positions: bool) -> None:
    """C8: a cache without limit works in an empty video's frames about 10^6 and 2^30."""
    chunk = trial.spec.frames_per_chunk
    for late in (10**6, 2**30):
        first_frame = late // chunk * chunk
        _, records = trial.run(history, first_frame=first_frame)
        try:
            check_views(trial, history, records, distinct_positions)
        except AssertionError as error:
            raise AssertionError(f"C8: from frame {first_frame} on: {error}") from error
        finite = [np.isfinite(x).all() for r in records for x in jax.tree.leaves(r.attended)]
        require(finite, "C8", f"from frame {first_frame} on: attention is not finite")


def check_memory_index(trial: Trial, leaves: list, num_chunks: int) -> None:
    """C8: frames in memory, if the policy tells them, are past frames in ascending order."""
    index = trial.policy.memory_index(jax.tree.unflatten(trial.treedef, leaves))
    if index is None:
        return
    index = np.asarray(index)
    require(
        index.dtype == np.int32 and index.ndim == 2 and len(index) == trial.num_layers,
        "C8",
        f"memory_index should be int32 [layers, memory], it is {index.dtype}{[*index.shape]}",
    )
    for held in (layer[layer != -1] for layer in index):
        require(
            (held >= 0) & (held < num_chunks * trial.spec.frames_per_chunk),
            "C8",
            f"memory_index {held} has frames that were never committed",
        )
        require(np.diff(held) > 0, "C8", f"memory_index {held} does not ascend")


def _videos(record: ChunkRecord, videos: list[int]) -> ChunkRecord:
    return jax.tree.map(lambda x: x[:, videos], record)


def _observed(one: ChunkRecord, two: ChunkRecord):
    """(name, first, second) of everything that a model can tell of two records."""
    for stage in ("before", "after"):
        for name, a, b in _shown(getattr(one, stage), getattr(two, stage)):
            yield f"{name} {stage} commit", a, b
    if one.attended is not None and two.attended is not None:
        for name in ("denoised", "committed"):
            yield f"{name} attention", getattr(one.attended, name), getattr(two.attended, name)


def _shown(one: ViewRecord, two: ViewRecord):
    yield "visible", one.visible, two.visible
    yield "query_position", one.query_position, two.query_position
    for name in ("position", "k", "v"):
        a, b = getattr(one, name), getattr(two, name)
        if one.visible.shape == two.visible.shape:
            a = np.where(one.visible[..., None], a, np.zeros((), a.dtype))
            b = np.where(two.visible[..., None], b, np.zeros((), b.dtype))
        yield f"visible {name}", a, b


def compare(
    trial: Trial,
    expected: Iterable[ChunkRecord],
    actual: Iterable[ChunkRecord],
    clause: str,
    what: str,
) -> None:
    """Frame numbers, positions and visibility exactly; keys, values and attention nearly."""
    for index, (one, two) in enumerate(zip(expected, actual, strict=True)):
        for name, a, b in _observed(one, two):
            message = f"{what} differs in {name} of chunk {index}"
            if jnp.issubdtype(a.dtype, jnp.floating):
                assert_close(b, a, trial.spec.dtype, f"{clause}: {message}")
            else:
                require(same_bits(a, b), clause, message)
