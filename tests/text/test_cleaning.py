"""Prompt cleaning: worked examples, and Wan's own pipeline in diffusers."""

import pytest
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from hypothesis import given
from hypothesis import strategies as st

from vidcache_jax.text import clean_prompt

PIECES = st.sampled_from(
    ["fox", " ", "\n\t", "&amp;", "&lt;b&gt;", "&amp;lt;", "schÃ¶n", "“so”"]
    + ["\u00a0", "\u3000", "\ufb01", "\u96ea"]
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  a  red\n\tfox ", "a red fox"),
        ("cats &amp;amp; dogs", "cats & dogs"),
        ("&amp;lt;b&amp;gt;", "<b>"),
        ("schÃ¶n", "schön"),
        ("&nbsp;snow&nbsp;", "snow"),
        ("", ""),
    ],
)
def test_examples(text, expected):
    assert clean_prompt(text) == expected


@given(st.lists(PIECES, max_size=12).map("".join))
def test_equals_wan(text):
    assert clean_prompt(text) == prompt_clean(text)


@given(st.text(max_size=30))
def test_equals_wan_on_any_text(text):
    assert clean_prompt(text) == prompt_clean(text)
