"""Conversion rules: full coverage or one error that lists everything."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from checkpoints_convert.rules import Rule, apply_rules, identity, permutation, transpose

RULES = (
    Rule(r"stem\.weight", "stem/kernel", transpose),
    Rule(r"stem\.bias", "stem/bias"),
    Rule(r"blocks\.(?P<layer>\d+)\.(?P<name>[qk])\.weight", r"blocks/\g<name>/kernel", transpose),
)


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def target(num_layers=3):
    return {
        "stem": {"kernel": shape(2, 3), "bias": shape(3)},
        "blocks": {name: {"kernel": shape(num_layers, 4, 5)} for name in "qk"},
    }


def source(num_layers=3):
    """Every element is another number, so that nothing can be swapped unseen."""
    tensors = {"stem.weight": (3, 2), "stem.bias": (3,)}
    for layer in range(num_layers):
        tensors |= {f"blocks.{layer}.{name}.weight": (5, 4) for name in "qk"}
    return {
        name: (100 * index + np.arange(np.prod(sizes)).reshape(sizes)).astype(np.float32)
        for index, (name, sizes) in enumerate(tensors.items())
    }


def problems_of(source, rules=RULES, abstract=None):
    with pytest.raises(ValueError) as error:
        apply_rules(rules, source, abstract or target(), jnp.float32)
    first, *problems = str(error.value).splitlines()
    assert first == "the checkpoint does not fit the model:"
    return [line.strip() for line in problems]


def test_every_tensor_arrives():
    tensors = source()
    params = apply_rules(RULES, tensors, target(), jnp.float32)
    assert jax.tree.structure(params) == jax.tree.structure(target())
    np.testing.assert_array_equal(params["stem"]["kernel"], tensors["stem.weight"].T)
    np.testing.assert_array_equal(params["stem"]["bias"], tensors["stem.bias"])
    for name in "qk":
        for layer in range(3):
            expected = tensors[f"blocks.{layer}.{name}.weight"].T
            np.testing.assert_array_equal(params["blocks"][name]["kernel"][layer], expected)


@pytest.mark.parametrize("order", [sorted, lambda names: sorted(names, reverse=True)])
def test_layers_stack_by_number_whatever_the_order_of_names(order):
    """In the order of their names, layer 10 would come before layer 2."""
    tensors = source(13)
    shuffled = {name: tensors[name] for name in order(tensors)}
    assert list(shuffled) != list(tensors)
    params = apply_rules(RULES, shuffled, target(13), jnp.float32)
    for layer in range(13):
        expected = tensors[f"blocks.{layer}.k.weight"].T
        np.testing.assert_array_equal(params["blocks"]["k"]["kernel"][layer], expected)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_dtype_is_the_one_asked_for(dtype):
    params = apply_rules(RULES, source(), target(), dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(dtype)}
    kernel = source()["stem.weight"].T
    np.testing.assert_array_equal(params["stem"]["kernel"], kernel.astype(dtype))


def test_missing_names_are_listed_with_their_layers():
    tensors = source()
    for name in ("stem.bias", "blocks.0.q.weight", "blocks.2.q.weight"):
        del tensors[name]
    assert sorted(problems_of(tensors)) == [
        "missing: blocks/q/kernel in layers [0, 2]",
        "missing: stem/bias",
    ]


def test_a_stack_that_is_missing_altogether():
    tensors = {name: x for name, x in source().items() if ".k." not in name}
    assert problems_of(tensors) == ["missing: blocks/k/kernel"]


def test_surplus_names_are_listed_with_their_shapes():
    extra = {"stem.scale": np.zeros((7,)), "xstem.bias": np.zeros(3), "stem.bias.1": np.zeros(3)}
    assert sorted(problems_of(source() | extra)) == [
        "surplus: stem.bias.1 (3,)",
        "surplus: stem.scale (7,)",
        "surplus: xstem.bias (3,)",
    ]


def test_both_lists_in_one_error():
    tensors = source()
    tensors["steam.bias"] = tensors.pop("stem.bias")
    assert sorted(problems_of(tensors)) == ["missing: stem/bias", "surplus: steam.bias (3,)"]


def test_a_checkpoint_of_more_layers_is_surplus():
    assert sorted(problems_of(source(4))) == [
        "surplus: blocks.3.k.weight (5, 4)",
        "surplus: blocks.3.q.weight (5, 4)",
    ]


def test_a_rule_without_a_target_is_surplus():
    """As for the affine norm in a model that is configured without it."""
    rules = (*RULES, Rule(r"norm\.weight", "norm/scale"))
    problems = problems_of(source() | {"norm.weight": np.zeros(3)}, rules)
    assert problems == ["surplus: norm.weight (3,)"]


def test_names_that_several_rules_match_are_refused():
    rules = (*RULES, Rule(r"stem\..*", "stem/bias"))
    problems = problems_of(source(), rules)
    assert "matched by several rules: stem.bias (3,)" in problems
    assert "matched by several rules: stem.weight (3, 2)" in problems


def test_wrong_shapes_are_listed():
    tensors = source()
    tensors["stem.weight"] = tensors["stem.weight"].T
    tensors["blocks.1.q.weight"] = np.zeros((5, 5), np.float32)
    problems = problems_of(tensors)
    assert "shape: stem.weight gives (3, 2), the model needs (2, 3)" in problems
    assert "shape: blocks.1.q.weight gives (5, 5), the model needs (4, 5)" in problems


def test_rules_match_whole_names_only():
    rule = Rule(r"a\.b", "a")
    with pytest.raises(ValueError, match=r"surplus: a\.bc"):
        apply_rules([rule], {"a.bc": np.zeros(1)}, {"a": shape(1)}, jnp.float32)
    params = apply_rules([rule], {"a.b": np.ones(1)}, {"a": shape(1)}, jnp.float32)
    np.testing.assert_array_equal(params["a"], [1])


def test_two_tensors_for_one_target_are_refused():
    tensors = source()
    tensors["blocks.01.q.weight"] = tensors["blocks.1.q.weight"]
    assert problems_of(tensors) == ["twice: blocks.01.q.weight (5, 4) fills blocks/q/kernel again"]


def test_a_layered_name_for_a_scalar_target_is_surplus():
    rules = (Rule(r"gain\.(?P<layer>\d+)", "gain"),)
    problems = problems_of({"gain.0": np.zeros(())}, rules, {"gain": shape()})
    assert problems == ["surplus: gain.0 ()", "missing: gain"]


@pytest.mark.parametrize(
    "rule",
    [
        Rule(r"stem\.weight", "stem/kernel"),
        Rule(r"a\.(?P<i>[02])\.(?P<n>weight|bias)", r"a/\g<n>_\g<i>"),
        Rule(r"blocks\.(?P<layer>\d+)\.(?P<p>[qkvo])\.w", r"blocks/\g<p>/w"),
        Rule(r"up\.(?P<i>\d+)\.conv_(?P<j>\d)\.g", r"up_\g<i>/conv_\g<j>/g"),
    ],
)
def test_rules_read_backwards(rule):
    """Name -> target -> the same name, for every name a rule matches."""
    groups = {"i": "02", "n": ("weight", "bias"), "p": "qkvo", "j": "19", "layer": ("0", "12")}
    for values in itertools.product(*groups.values()):
        own = dict(zip(groups, values, strict=True))
        name = re.sub(r"\(\?P<(\w+)>[^()]*\)", lambda m, own=own: own[m[1]], rule.pattern)
        name = name.replace("\\", "")
        match = re.fullmatch(rule.pattern, name)
        assert match
        layer = int(match["layer"]) if "layer" in match.groupdict() else None
        assert rule.source_name(match.expand(rule.target), layer) == name
        assert rule.source_name(match.expand(rule.target) + "x", layer) is None
        assert rule.source_name(match.expand(rule.target), 3 if layer is None else None) is None


@pytest.mark.parametrize(
    "rule",
    [
        Rule(r"a\.(\d)", "a"),  # a group without a name
        Rule(r"a\.(?P<i>\d)", "a"),  # which is lost
        Rule(r"a.?b", "ab"),
        Rule(r"a\.(?P<i>(x|y))", r"a_\g<i>"),
    ],
)
def test_rules_that_have_no_way_back_say_so(rule):
    with pytest.raises(ValueError, match="backwards|each group"):
        rule.source_name("a", None)


def test_transforms_and_their_inverses():
    weight = np.arange(120).reshape(1, 2, 3, 4, 5)
    transform = permutation(2, 3, 4, 1, 0)
    assert transform(weight).shape == (3, 4, 5, 2, 1)
    assert transform(weight)[2, 1, 3, 1, 0] == weight[0, 1, 2, 1, 3]
    for each, value in ((transform, weight), (transpose, weight[0, 0]), (identity, weight)):
        np.testing.assert_array_equal(Rule("a", "a", each).inverse(each(value)), value)


def test_a_plain_function_works_one_way():
    rule = Rule("a", "a", lambda weight: 2 * weight)
    params = apply_rules([rule], {"a": np.ones(1)}, {"a": shape(1)}, jnp.float32)
    np.testing.assert_array_equal(params["a"], [2])
    with pytest.raises(TypeError, match="give it a Transform"):
        rule.inverse(np.ones(1))
