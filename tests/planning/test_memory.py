"""A run that cannot fit is refused with the numbers, before and while it runs."""

import dataclasses
import re

import jax
import pytest

import vidcache_jax as vj
from tests.toy import toy_model
from vidcache_jax.planning import memory
from vidcache_jax.planning.memory import check_memory, memory_accounted, memory_limit
from vidcache_jax.planning.plan import GIB
from vidcache_jax.sampling.rollout import Rollout
from vidcache_jax.sharding import ONE_DEVICE, Layout, make_mesh

POLICY = vj.SlidingWindow(window_size=7, sink_size=2)


def rollout_on(layout: Layout = ONE_DEVICE) -> Rollout:
    model = toy_model()
    return Rollout(model.config, model.rollout, POLICY, layout)


@dataclasses.dataclass
class Device:
    statistics: dict[str, int] | None

    def memory_stats(self):
        return self.statistics


def test_the_limit_is_the_smallest_that_is_known():
    known = [Device({"bytes_limit": size}) for size in (30, 20)]
    assert memory_limit([*known, Device(None), Device({})]) == 20
    assert memory_limit([Device(None)]) is None
    assert memory_limit(jax.local_devices()) is None


def test_what_does_not_fit_is_refused_with_the_numbers(monkeypatch):
    model, rollout = toy_model(), rollout_on()
    plan = memory.plan_in(GIB, model, rollout, 1)
    nbytes = lambda tree: sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
    assert plan.weights == nbytes(model.params)
    assert plan.state == nbytes(rollout.init(1, model.latent_size, "float32"))
    assert plan.other_inputs > nbytes(model.codec_params)
    monkeypatch.setattr(memory, "memory_limit", lambda devices: plan.total)
    check_memory(model, rollout, 1)
    monkeypatch.setattr(memory, "memory_limit", lambda devices: plan.total // 2)
    # Of a model that is not loaded there are shapes.
    outline = dataclasses.replace(model, params=jax.eval_shape(lambda: model.params))
    with pytest.raises(ValueError, match="this run does not fit: .* more heads= in --mesh") as told:
        check_memory(outline, rollout, 1)
    numbers = [float(number) for number in re.findall(r"([\d.]+) GiB", str(told.value))]
    parts = (plan.weights, plan.state, plan.temporaries, plan.other_inputs, plan.total)
    halves = (plan.total // 2, plan.total - plan.total // 2)
    assert numbers == pytest.approx([part / GIB for part in (*parts, *halves)], abs=0.0051)


def test_weights_in_parts_are_the_remedy_where_they_would_do(monkeypatch):
    mesh = make_mesh(data=4, heads=2)
    model, whole, parts = toy_model(), rollout_on(Layout(mesh)), rollout_on(Layout(mesh, True))
    needs = [memory.plan_in(GIB, model, rollout, 4).total for rollout in (whole, parts)]
    monkeypatch.setattr(memory, "memory_limit", lambda devices: needs[1])
    check_memory(model, parts, 4)
    with pytest.raises(ValueError, match="too little. --shard-weights would do"):
        check_memory(model, whole, 4)
    monkeypatch.setattr(memory, "memory_limit", lambda devices: needs[1] - 1)
    for rollout in (whole, parts):
        with pytest.raises(ValueError, match="What helps: more heads= in --mesh"):
            check_memory(model, rollout, 4)


def test_a_lack_of_memory_while_running_is_told_in_the_same_way():
    model, rollout = toy_model(), rollout_on()
    told = (
        r"ran out of memory \(RESOURCE_EXHAUSTED: 5 bytes\). What was finished is kept. .* GiB of"
    )
    with pytest.raises(ValueError, match=told), memory_accounted(model, rollout, 1):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 5 bytes\nand more")
    with pytest.raises(jax.errors.JaxRuntimeError), memory_accounted(model, rollout, 1):
        raise jax.errors.JaxRuntimeError("UNAVAILABLE: another process is lost")
