"""Reading collectives from HLO: real programs of known communication."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vidcache_jax.planning.collectives import Collective, collectives

MESH = Mesh(np.asarray(jax.devices()[:4]), ("chips",))
ROWS, COLUMNS = (
    NamedSharding(MESH, PartitionSpec(*axes)) for axes in (("chips",), (None, "chips"))
)


def hlo(function, *shapes, dtype=jnp.float32, given=ROWS, wanted=ROWS) -> str:
    inputs = [jax.ShapeDtypeStruct(shape, dtype, sharding=given) for shape in shapes]
    return jax.jit(function, out_shardings=wanted).lower(*inputs).compile().as_text() or ""


def test_nothing_moves_where_nothing_has_to():
    assert collectives(hlo(lambda x: x * 2, (8, 12))) == []


def test_kinds_and_bytes_on_one_chip():
    # 8 x 12 numbers, a quarter on each chip before and after.
    [exchange] = collectives(hlo(lambda x: x * 2, (8, 12), wanted=COLUMNS))
    assert exchange == Collective("all-to-all", 8 * 12 * 4 // 4, 1)
    everywhere = NamedSharding(MESH, PartitionSpec())
    [gather] = collectives(hlo(lambda x: x * 2, (8, 12), dtype=jnp.bfloat16, wanted=everywhere))
    # The CPU backend may gather bfloat16 as float32 or as it is.
    assert gather.kind == "all-gather" and gather.nbytes in (8 * 12 * 2, 8 * 12 * 4)
    [total] = collectives(hlo(lambda x: jnp.sum(x, axis=0), (8, 12), wanted=everywhere))
    assert total == Collective("all-reduce", 12 * 4, 1)


def test_loops_are_counted_by_their_trips():
    def nested(x):
        def turn(x, _):
            return jax.lax.with_sharding_constraint(jnp.sin(x), COLUMNS), None

        def both(x, _):
            x, _ = jax.lax.scan(turn, jax.lax.with_sharding_constraint(x, ROWS), length=3)
            return jax.lax.with_sharding_constraint(x, ROWS), None

        return jax.lax.scan(both, x, length=5)[0]

    times = [c.times for c in collectives(hlo(nested, (8, 12)))]
    # There and back, once a turn of the outer loop; the inner one stays where it is.
    assert sorted(times) == [5, 5]


def test_of_an_asynchronous_start_the_result_counts():
    """As TPU programs have them; the CPU backend has none."""
    text = """
ENTRY %main (x: bf16[4,8]) -> bf16[4,8] {
  %x = bf16[4,8] parameter(0)
  %there = (bf16[4,8], bf16[4,8], u32[], u32[]) collective-permute-start(%x), channel_id=1
  %all = (bf16[4,8], bf16[4,16]) all-gather-start(%x), channel_id=2
}
"""
    assert collectives(text) == [
        Collective("collective-permute", 4 * 8 * 2, 1), Collective("all-gather", 4 * 16 * 2, 1)
    ]  # fmt: skip
