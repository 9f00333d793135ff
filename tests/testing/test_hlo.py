import jax
import jax.numpy as jnp
import pytest

from vidcache_jax.testing import cache_sized_copies

CACHE = {"k": jax.ShapeDtypeStruct((4, 1, 2, 30), jnp.float32),
         "frame_index": jax.ShapeDtypeStruct((4, 5), jnp.int32)}  # fmt: skip


@pytest.mark.parametrize(
    "line",
    [
        "  %copy.1 = f32[4,1,2,30]{3,2,1,0} copy(f32[4,1,2,30]{3,2,1,0} %p)",
        "  ROOT %copy.2 = f32[4,1,2,30]{0,1,2,3:T(8,128)} copy(%p), metadata={op_name=\"a/b\"}",
        "%copy.3 = bf16[240]{0} copy(%p)",
        "%c = (f32[4,1,2,30]{3,2,1,0}, f32[4,1,2,30]{3,2,1,0}, u32[]) copy-start(%p)",
    ],
)  # fmt: skip
def test_copies_of_a_whole_buffer_are_listed(line):
    text = "\n".join(["HloModule m", "%body {", line, "}"])
    assert cache_sized_copies(text, CACHE) == [line.strip()]


@pytest.mark.parametrize(
    "line",
    [
        "%copy.1 = f32[1,1,2,30]{3,2,1,0} copy(%p)",
        "%copy.2 = s32[4,5]{1,0} copy(%p)",
        "%copy.3 = s32[] copy(%p)",
        "%copy.5 = s32[4,60]{1,0} copy(%p)",
        "%copy.4 = f32[4,1,2,30]{3,2,1,0} dynamic-update-slice(%p, %copy.9, %i)",
        "%add = f32[4,1,2,30]{3,2,1,0} add(%copy.5, %copy)",
        "%done = f32[4,1,2,30]{3,2,1,0} copy-done(%c)",
        "",
    ],
)
def test_other_lines_are_not(line):
    assert cache_sized_copies(line, CACHE) == []


def test_a_compiled_program_can_be_given():
    shape = jax.ShapeDtypeStruct((4, 1, 2, 30), jnp.float32)
    in_place = lambda k: k.at[1].set(jnp.float32(1))
    flipped = lambda k: jnp.flip(k, axis=0)
    copies = [
        cache_sized_copies(jax.jit(f, donate_argnums=0).lower(shape).compile(), {"k": shape})
        for f in (in_place, flipped)
    ]
    assert copies[0] == []
    assert len(copies[1]) == 1
