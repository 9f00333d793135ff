"""Rollouts on a mesh of eight devices: the numbers of one, and traffic and work as by formula."""

import collections
import functools
import itertools
import math
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.cases import QUICK, case
from vidcache_jax.cache import (
    ISPA,
    POLICIES,
    CacheSpec,
    FullCache,
    FutureForcing,
    HeadForcing,
    HeadRoles,
    SlidingWindow,
    TetherCache,
)
from vidcache_jax.config import RolloutConfig
from vidcache_jax.planning.analytic import analytic_plan
from vidcache_jax.planning.chips import CHIPS
from vidcache_jax.planning.collectives import collectives
from vidcache_jax.planning.counts import attended_frames, chunk_work
from vidcache_jax.planning.hlo import executed
from vidcache_jax.sampling.rollout import Rollout
from vidcache_jax.sampling.session import make_chunk
from vidcache_jax.sharding import DATA, MODEL_AXES, Layout, axis_letters, make_mesh, parse_mesh
from vidcache_jax.testing import assert_close, cache_sized_copies
from vidcache_jax.testing.tolerances import ROLLOUT_ON_A_MESH

CASE = case(batch=2, latent_size=(4, 8), num_heads=4, dim=48)
CONFIG = RolloutConfig(frames_per_chunk=3, denoise_timesteps=(1000, 600, 300))
TOKENS, CHUNKS, STEPS = 3 * 2 * 4, 4, 3
SHAPE = (3, *CASE.latent_size, CASE.config.in_dim)
# Past warm-up and boundary in four chunks.
SMALL = {
    "full": FullCache(12),
    "sliding-window": SlidingWindow(7, 2),
    "tethercache": TetherCache(2, 3, 4),
    # A candidate in every chunk but the first, and so a merge.
    "head-forcing": HeadForcing(
        HeadRoles((("local", "memory", "anchor", "memory"),) * CASE.config.num_layers),
        episodic_size=2,
        update_interval=1,
    ),
    # With profiles of fewer steps many tokens are equally near, and rounding routes them.
    "future-forcing": FutureForcing(7, delta_max=6),
    "ispa": ISPA(SlidingWindow(7, 2), warmup_frames=6),
}
ALL = dict(data=2, heads=2, sequence=2)
MESHES = {
    "data": dict(data=2), "heads": dict(heads=4), "sequence": dict(sequence=2),
    "thirds": dict(sequence=3), "data-heads": dict(data=2, heads=2),
    "data-sequence": dict(data=2, sequence=2), "heads-sequence": dict(heads=4, sequence=2),
}  # fmt: skip
# Enough to see each mesh, all policies being tried on all axes at once; the others, which take
# minutes, by `-m matrix`.
SELECTED = {
    ("full", "thirds"), ("full", "data-sequence"), ("sliding-window", "data"),
    ("sliding-window", "heads-sequence"), ("tethercache", "heads"), ("head-forcing", "data-heads"),
    ("future-forcing", "sequence"),
}  # fmt: skip


def layout(sizes: dict[str, int], shard_weights: bool = False) -> Layout:
    devices = jax.devices()[: math.prod(sizes.values())]
    return Layout(make_mesh(**sizes, devices=devices), shard_weights)


class Program(NamedTuple):
    """A chunk program, as traced and as compiled."""

    jaxpr: Any
    hlo: str


@functools.cache
def run(policy, layout):
    """(latents of each chunk, leaves of the last state, the chunk program of each phase)."""
    rollout = Rollout(CASE.config, CONFIG, policy, layout)
    params = CASE.params
    if layout.mesh:
        params = jax.device_put(params, layout.params(params))
    state = rollout.init(CASE.batch, CASE.latent_size, jnp.float32)
    step, programs, latents = None, [], []
    inputs = lambda i: (
        CASE.text_kv, jnp.asarray(CASE.latents(2 * i, CASE.batch, 3)),
        jnp.asarray(CASE.latents(2 * i + 1, STEPS - 1, CASE.batch, 3)),
    )  # fmt: skip
    for i in range(CHUNKS):
        before = rollout
        rollout, state = rollout.advance(params, state, 3 * i)
        if step is None or rollout != before:
            step, program = compiled_step(rollout, params, state, inputs(i))
            programs.append(program)
        placed = [leaf.sharding for leaf in jax.tree.leaves(state)]
        state, made = step(params, state, *inputs(i))
        latents.append(np.asarray(made))
        for leaf, sharding in zip(jax.tree.leaves(state), placed, strict=True):
            assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
    return np.stack(latents), [np.asarray(leaf) for leaf in jax.tree.leaves(state)], programs


def compiled_step(rollout, params, state, inputs):
    """(params, state, *inputs) -> (state, latents), compiled, and the program itself."""
    treedef = jax.tree.structure(state)

    def step(params, leaves, *inputs):
        state, result = rollout.step(params, jax.tree.unflatten(treedef, leaves), *inputs)
        return jax.tree.leaves(state), result.latents

    jitted = jax.jit(step, donate_argnums=1, compiler_options=QUICK)
    traced = jitted.trace(params, jax.tree.leaves(state), *inputs)
    compiled = traced.lower().compile()

    def run(params, state, *inputs):
        leaves, latents = compiled(params, jax.tree.leaves(state), *inputs)
        return jax.tree.unflatten(treedef, leaves), latents

    return run, Program(traced.jaxpr.jaxpr, compiled.as_text() or "")


def assert_equals_one_device(policy, layout):
    expected, expected_cache, _ = run(policy, Layout())
    actual, cache, _ = run(policy, layout)
    assert_close(actual, expected, ROLLOUT_ON_A_MESH)
    for mine, theirs in zip(cache, expected_cache, strict=True):
        # ISPA's products are sums of large terms, of which little may be left.
        scale = max(1, np.abs(theirs).max()) if np.issubdtype(mine.dtype, np.floating) else 1
        assert np.isfinite(scale)
        assert_close(mine / scale, theirs / scale, ROLLOUT_ON_A_MESH)


def test_every_policy_is_tried():
    assert SMALL.keys() == POLICIES.keys()


@pytest.mark.parametrize("name", SMALL)
def test_over_videos_heads_and_tokens_at_once(name):
    assert_equals_one_device(SMALL[name], layout(ALL))


def test_every_mesh_is_selected():
    assert {mesh for _, mesh in SELECTED} == MESHES.keys()


@pytest.mark.parametrize(
    "name, mesh",
    [
        pytest.param(*both, marks=[pytest.mark.matrix] * (both not in SELECTED))
        for both in itertools.product(SMALL, MESHES)
    ],
)
def test_over_each_axis_and_each_two(name, mesh):
    assert_equals_one_device(SMALL[name], layout(MESHES[mesh]))


def test_with_weights_in_parts():
    divided = layout(ALL, shard_weights=True)
    assert_equals_one_device(SMALL["sliding-window"], divided)
    kernel = jax.device_put(CASE.params, divided.params(CASE.params))["blocks"]["ffn_0"]["kernel"]
    assert kernel.addressable_shards[0].data.size * 4 == kernel.size


def test_under_pmap_over_prompts(quick):
    """The step as it is, one video on each of two devices; one policy stands for all."""
    policy, chunks = SMALL["sliding-window"], 2
    rollout = Rollout(CASE.config, CONFIG, policy)
    leaves, treedef = jax.tree.flatten(rollout.init(1, CASE.latent_size, jnp.float32))

    def step(leaves, text_kv, *noise):
        state = jax.tree.unflatten(treedef, leaves)
        state, result = rollout.step(CASE.params, state, text_kv, *noise)
        return jax.tree.leaves(state), result.latents

    # [.. B ..] -> [device, .. B = 1 ..]
    each = lambda x, axis: np.stack(np.split(np.asarray(x), CASE.batch, axis))
    text_kv = jax.tree.map(lambda x: each(x, 1), CASE.text_kv)
    mapped, latents = jax.pmap(step, devices=jax.devices()[: CASE.batch]), []
    leaves = [np.stack([leaf] * CASE.batch) for leaf in leaves]
    for i in range(chunks):
        noise = each(CASE.latents(2 * i, CASE.batch, 3), 0)
        renoise = each(CASE.latents(2 * i + 1, STEPS - 1, CASE.batch, 3), 1)
        leaves, made = mapped(leaves, text_kv, noise, renoise)
        latents.append(made[:, 0])
    expected, *_ = run(policy, Layout())
    assert_close(np.stack(latents), expected[:chunks], ROLLOUT_ON_A_MESH)


def traffic(hlo: str) -> collections.Counter:
    """(kind, bytes) of each collective -> times."""
    counted = collections.Counter()
    for c in collectives(hlo):
        counted[c.kind, c.nbytes] += c.times
    return counted


@pytest.mark.parametrize("name", SMALL)
def test_a_plan_by_formula_has_that_traffic(name):
    """Of plans: what there is besides is small or of few layers, as the next test says."""
    own = layout(ALL)
    rollout = Rollout(CASE.config, CONFIG, SMALL[name], own)
    plan = analytic_plan(rollout, CASE.batch, CASE.latent_size, CHIPS["v5e"], jnp.float32)
    *_, (program, *_) = run(SMALL[name], own)
    formula, counted = collections.Counter(), traffic(program.hlo)
    for each in plan.traffic:
        formula[each.kind, each.nbytes] += each.times
    assert all(times <= counted[both] for both, times in formula.items()), (formula, counted)
    moved = sum(nbytes * times for (_, nbytes), times in counted.items())
    assert plan.moved <= moved < 1.25 * plan.moved


@pytest.mark.parametrize("name", SMALL)
def test_traffic_is_what_the_formula_says(name):
    """Four all-to-alls of the chunk in every layer of a pass; `sequence` gathers k and v."""
    *_, (program, *later) = run(SMALL[name], layout(ALL))
    layers, passes, width = CASE.config.num_layers, STEPS + 1, CASE.config.dim
    counted, after = traffic(program.hlo), traffic("".join(each.hlo for each in later))
    video = TOKENS * 4  # float32, one video on a chip
    exchange = ("all-to-all", video * width // 4)
    assert counted.pop(exchange) == 4 * layers * passes
    gathered = ("all-gather", video * width // 2)
    patch = CASE.config.out_dim * 4
    assert counted.pop(("all-gather", video * patch)) == STEPS
    if name == "ispa":
        # Both streams of a chip's tokens are gathered too, with as many numbers. The compiler
        # rotates the sink apart from the rest, in parts.
        streams = counted.pop(gathered) - 3 * layers * passes
        assert 2 * layers * passes <= streams <= layers * (3 * passes + 1)
        # The products' columns of a chip's heads, and all of them together at the end.
        assert counted.pop(("all-reduce", 3 * 4 * width**2 // 2)) == layers * passes
        assert counted.pop(("all-gather", 4 * layers * width**2)) == 3
        assert not counted
        # Afterwards both kinds of layers are in the program: nothing is larger than the chunk's own
        # keys, of which a window has twice as many.
        assert after.pop(exchange) == 4 * layers * passes
        assert max(nbytes for _, nbytes in after) == video * width // 2, after
        return
    # v of a head group in every pass, and k twice: the compiler rotates it in parts.
    assert counted.pop(gathered) == 3 * layers * passes
    if name == "head-forcing":
        # It reads the prompt's keys, so the compiler divides them by heads, and cross-attention
        # wants them whole: 1.5 MiB a layer and pass of Wan 1.3B, whatever the cache holds.
        prompt = ("all-gather", CASE.config.text_len * width * 4)
        assert counted.pop(prompt) == layers * passes
    # Of a policy over heads or queries, in the layers of the commit pass and in no loop of theirs:
    # a few numbers for each token that a chip's heads hold, where keys and values have 24. Future
    # Forcing has two for each of six steps ahead and one for the present.
    held, most = 2 * 7 * TOKENS // 3, 13 if name == "future-forcing" else 2
    total = sum(nbytes * times for (_, nbytes), times in counted.items())
    assert total <= layers * 4 * (most + 1) * held
    for (kind, nbytes), times in counted.items():
        assert kind in ("all-reduce", "all-gather", "collective-permute"), counted
        assert nbytes <= 4 * most * held and times <= 2 * layers, counted


def test_noise_and_what_else_makes_a_chunk_take_no_collective():
    """`make_chunk` is the program that is run; what it adds to the step stays on each chip."""
    own = layout(ALL)
    rollout = Rollout(CASE.config, CONFIG, SMALL["sliding-window"], own)
    leaves, treedef = jax.tree.flatten(rollout.init(CASE.batch, CASE.latent_size, jnp.float32))
    keys = jax.device_put(jax.random.split(jax.random.key(0), CASE.batch), own.named(DATA))
    params = jax.device_put(CASE.params, own.params(CASE.params))

    def chunk(leaves, *inputs):
        state = jax.tree.unflatten(treedef, leaves)
        state, latents, fill = make_chunk(rollout, SHAPE, params, state, *inputs)
        assert fill is None
        return jax.tree.leaves(state), latents

    made = jax.jit(chunk, compiler_options=QUICK).lower(leaves, CASE.text_kv, keys, np.int32(0))
    *_, [program] = run(rollout.policy, own)
    assert traffic(made.compile().as_text() or "") == traffic(program.hlo)


def test_tokens_are_looked_up_by_each_chip_for_itself():
    """A compiler for TPUs divided these among chips and gathered the cache for every block."""
    *_, [program] = run(SMALL["future-forcing"], layout(ALL))
    everywhere, left = ({*primitives(program.jaxpr, by_hand)} for by_hand in (True, False))
    by_token = {"sort", "scatter"}
    assert by_token <= everywhere and not by_token & left


def primitives(jaxpr, by_hand: bool):
    """Names of all operations of a program, those mapped over heads and tokens by hand or not."""
    for equation in jaxpr.eqns:
        given = [*equation.params.values()]
        # The axes of a `shard_map`, whose name differs between versions of JAX.
        axes = [value for value in given if isinstance(value, frozenset)]
        if by_hand or not any({*MODEL_AXES} <= each for each in axes):
            yield equation.primitive.name
            for value in jax.tree.leaves(given):
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns"):
                    yield from primitives(inner, by_hand)


# What Future Forcing's routing takes no formula has.
@pytest.mark.parametrize("name", sorted(SMALL.keys() - {"future-forcing"}))
def test_operations_are_what_the_formula_says_and_shared_out(name):
    passes, size = STEPS + 1, CASE.config.dim
    for layout_ in (Layout(), layout(ALL)):
        slots = attended_frames(Rollout(CASE.config, CONFIG, SMALL[name]), CASE.latent_size)
        # XLA forms the logits of hidden slots too, where a kernel leaves out as many as the chunk
        # has frames: its own come on top in a denoise pass.
        frames = (STEPS * (slots + CONFIG.frames_per_chunk) + slots) / passes
        products = 0
        if name == "ispa":
            # It attends in all passes alike, and multiplies two streams with each other.
            frames = slots + CONFIG.frames_per_chunk
            products = passes * CASE.config.num_layers * 3 * 2 * TOKENS * size**2
        work = chunk_work(CASE.config, CONFIG, CASE.latent_size, frames)
        patch = 4 * (passes * CASE.config.in_dim + STEPS * CASE.config.out_dim)
        divided = work.total + products + 2 * TOKENS * patch * size
        # Every chip embeds the time step of each frame.
        time = passes * 2 * CONFIG.frames_per_chunk * (CASE.config.freq_dim + 7 * size) * size
        videos = CASE.batch // layout_.size(DATA)
        expected = videos * (divided / layout_.size(*MODEL_AXES) + time)
        *_, (program, *_) = run(SMALL[name], layout_)
        # What a policy does besides.
        assert 1 <= operations(program.hlo) / expected < 1.001


def operations(hlo: str) -> int:
    """Of all matrix products: two for each number of the result and of the contracted axes."""
    sizes = lambda text: [int(size) for size in text.split(",") if size]
    shape = re.compile(r"%([\w.\-]+) = \w+\[([\d,]*)\]")
    shapes = {name: sizes(text) for name, text in shape.findall(hlo)}
    product = re.compile(r" dot\(%([\w.\-]+), .*lhs_contracting_dims=\{([\d,]*)\}")
    total = 0
    for line, times in executed(hlo):
        if (found := product.search(line)) and (result := shape.search(line)):
            contracted = [shapes[found[1]][axis] for axis in sizes(found[2])]
            total += 2 * times * math.prod(shapes[result[1]]) * math.prod(contracted)
    return total


@pytest.mark.parametrize("name", SMALL)
def test_the_cache_stays_where_it_is(name):
    rollout = Rollout(CASE.config, CONFIG, SMALL[name], layout(ALL))
    leaves = jax.tree.leaves(rollout.init(CASE.batch, CASE.latent_size, jnp.float32).cache)
    own = [jax.ShapeDtypeStruct(x.addressable_shards[0].data.shape, x.dtype) for x in leaves]
    # Of keys and values a chip has its videos and heads, of all else its videos at least.
    for leaf, part in zip(leaves, own, strict=True):
        assert math.prod(part.shape) * (4 if leaf.ndim == 5 else 2) <= leaf.size
    *_, (program, *_) = run(SMALL[name], layout(ALL))
    assert cache_sized_copies(program.hlo, own) == []


def test_axes_come_from_the_annotations():
    spec = CacheSpec(
        batch=1, num_heads=2, head_dim=4, grid=(1, 2), frames_per_chunk=3, dtype=jnp.float32
    )
    window = SlidingWindow(4).init_layers(spec, 2)
    assert axis_letters(window) == [tuple("LBNSH")] * 2 + [tuple("LBK")]
    tether = TetherCache(1, 2, 3).init_layers(spec, 2)
    assert axis_letters(tether)[3:] == [tuple("LBNKH")] * 4
    with pytest.raises(TypeError, match="holds a dict: .* annotations name their axes"):
        axis_letters({"k": jnp.zeros(3)})


@pytest.mark.parametrize(
    "batch, heads, tokens, message",
    [
        (3, 12, 4680, "3 videos do not divide over data = 2; meshes of 8 devices that work: "
         "sequence=8; heads=2,sequence=4; heads=4,sequence=2$"),
        (2, 9, 4680, "9 attention heads do not divide over heads = 2; .*: "
         "data=8; data=4,sequence=2; data=2,sequence=4; sequence=8$"),
        (2, 12, 6, "6 tokens of a chunk do not divide over sequence x heads = 4; .*: "
         "data=8; data=4,sequence=2; data=4,heads=2$"),
        (3, 12, 7, "3 videos do not divide over data = 2; .* that work: none$"),
    ],
)  # fmt: skip
def test_what_cannot_be_divided_is_refused(batch, heads, tokens, message):
    with pytest.raises(ValueError, match=message):
        layout(ALL).check(batch, heads, tokens)


def test_parse_mesh():
    assert parse_mesh("data=4,heads=2") == {"data": 4, "heads": 2}
    for bad in ("", "data", "data=0x2", "data=2,data=2", "width=2", "heads=-1"):
        with pytest.raises(ValueError, match='for example "data=4,heads=2"'):
            parse_mesh(bad)
    with pytest.raises(ValueError, match="takes 4 devices, but there are 8"):
        make_mesh(data=4)
