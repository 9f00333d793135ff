"""Compiles the kernels for TPUs on a machine that has none; prints two tables.

    pip install -e ".[tpu]"                        # the compiler, libtpu
    python scripts/compile_tpu.py                  # every case for every chip; a minute or two
    python scripts/compile_tpu.py --search v5e     # tilings of the largest attention, best last

*Compiled*: `attention` as the model calls it, no implementation named, at the shapes of Wan's 1.3B
and 14B at 480 x 832, `ops.rope_stack` and `ops.recall` likewise, as the working copy and
TetherCache call them, and the kernels of `ops.scoring` and `ops.merge` as Future Forcing needs
them. A case fails if it does not compile, if
the kernel was not chosen, or if the program holds more temporaries than a hundredth of the keys and
values (or 2 MiB): it copies none. Routing may hold its profiles twice: they are not always laid out
as it needs.

*Instructions* are those that the compiler has scheduled for one block of keys against one block of
queries, from its own dump; *of peak* is the FLOPs per instruction over what the chip's matrix units
do in a cycle. It says how good the schedule is, not how fast the kernel runs: memory and stalls are
not in it. Nothing here runs on a TPU.

In a process of its own, because once libtpu is there plain JAX looks for the TPU first.
"""

import os

# Read when JAX is imported: with libtpu there it would look for a TPU first.
os.environ["JAX_PLATFORMS"] = "cpu"

import dataclasses
import functools
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.sharding import SingleDeviceSharding
from rich.console import Console
from rich.table import Table

from vidcache_jax.ops.attention import attention, tpu
from vidcache_jax.ops.attention.keys import Keys
from vidcache_jax.ops.merge import route
from vidcache_jax.ops.mosaic import SUBLANES, round_up
from vidcache_jax.ops.recall import Moments, recall, store
from vidcache_jax.ops.rope_stack import rotate_stack
from vidcache_jax.ops.scoring import tpu as scoring
from vidcache_jax.planning.topology import tpu_devices

TOPOLOGIES = {"v4": "v4:2x2x1", "v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
# Of one core: four matrix units. Times clock and cores these are the datasheets' bf16 peaks:
# 275, 197, 459 and 918 TFLOP/s at 1.05, 1.5, 1.75 and 1.75 GHz with 2, 1, 2 and 1 cores.
FLOPS_PER_CYCLE = {
    **dict.fromkeys(("v4", "v5e", "v5p"), 4 * 128 * 128 * 2),
    "v6e": 4 * 256 * 256 * 2,
}
FRAME = 30 * 52
CHUNK = 3 * FRAME
COPIES_NONE = 1 / 100
"""Temporaries that a program may hold, as a share of what it is given."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args:
    """What to compile."""

    chips: tuple[str, ...] = tuple(TOPOLOGIES)
    search: str | None = None
    """A chip for which to order tilings instead."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One attention call: shapes, and which conditions are given (axes N of tables, 0 = none)."""

    name: str
    num_heads: int
    num_keys: int
    num_layers: int = 0
    """Of the stack that keys and values come from; 0: they are not stacked."""
    slots: int = 0
    lengths: int = 0
    bias: int = 0
    num_queries: int = CHUNK
    head_dim: int = 128
    dtype: Any = jnp.bfloat16
    run: int = FRAME
    """Keys in a slot."""

    function = staticmethod(attention)
    may_copy: ClassVar[float] = COPIES_NONE

    def arguments(self, sharding: SingleDeviceSharding) -> dict[str, jax.ShapeDtypeStruct]:
        array = lambda shape, dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
        heads, runs = (1, self.num_heads), self.num_keys // self.run
        stack = (self.num_layers,) if self.num_layers else ()
        stored = array((*stack, *heads, self.num_keys, self.head_dim), self.dtype)
        given = {
            "q": array((*heads, self.num_queries, self.head_dim), self.dtype),
            "k": stored,
            "v": stored,
            "layer": array((), jnp.int32) if self.num_layers else None,
            "slots": array((1, self.slots, runs), jnp.bool) if self.slots else None,
            "lengths": array((1, self.lengths), jnp.int32) if self.lengths else None,
            "bias": array((1, self.bias, runs), jnp.float32) if self.bias else None,
        }
        return {name: value for name, value in given.items() if value is not None}

    @property
    def nbytes(self) -> int:
        itemsize = jnp.dtype(self.dtype).itemsize
        return 2 * self.num_heads * self.num_keys * self.head_dim * itemsize


@dataclasses.dataclass(frozen=True)
class ScoringCase:
    """What keys receive, at a head_dim of 128 in bfloat16."""

    name: str
    num_heads: int
    num_keys: int
    num_queries: int
    horizon: int = 1
    has_residuals: bool = False

    function = staticmethod(scoring.column_sums)
    may_copy: ClassVar[float] = COPIES_NONE

    def arguments(self, sharding: SingleDeviceSharding) -> dict[str, jax.ShapeDtypeStruct]:
        array = lambda dtype, *shape: jax.ShapeDtypeStruct(
            (1, self.num_heads, *shape), dtype, sharding=sharding
        )
        given = {
            "q": array(jnp.bfloat16, self.horizon, self.num_queries, 128),
            "k": array(jnp.bfloat16, self.num_keys, 128),
            "visible": array(jnp.bool, self.num_keys),
        }
        known = {"log_sum": array(jnp.float32, self.num_queries)} if self.has_residuals else {}
        return given | known

    @property
    def nbytes(self) -> int:
        return 2 * self.num_heads * self.num_keys * 128


@dataclasses.dataclass(frozen=True)
class RoutingCase:
    """What a chunk's worth of evicted tokens, of 18 frames in bfloat16, is merged into."""

    name: str
    num_heads: int
    horizon: int = 6

    function = staticmethod(route)
    may_copy: ClassVar[float] = 1
    """Profiles are not always laid out as it needs."""

    def arguments(self, sharding: SingleDeviceSharding) -> dict[str, jax.ShapeDtypeStruct]:
        array = lambda dtype, *shape: jax.ShapeDtypeStruct(
            (1, self.num_heads, *shape), dtype, sharding=sharding
        )
        return {
            "evicted": array(jnp.float32, self.horizon, CHUNK),
            "retained": array(jnp.float32, self.horizon, 18 * FRAME),
            "rank": array(jnp.int32, 18 * FRAME),
        }

    @property
    def nbytes(self) -> int:
        # Registers hold eight steps of a horizon. The ranks are as large as one.
        retained, rows = 18 * FRAME, round_up(self.horizon, SUBLANES)
        return 4 * self.num_heads * (rows * (retained + CHUNK) + retained)


@dataclasses.dataclass(frozen=True)
class FramesCase:
    """Keys of three frames among 21 slots, recalled or stored, at a head_dim of 128 in bfloat16."""

    name: str
    num_heads: int
    function: Any

    may_copy: ClassVar[float] = COPIES_NONE

    def arguments(self, sharding: SingleDeviceSharding) -> dict[str, Any]:
        def array(dtype: Any, *shape: int) -> Any:
            return jax.ShapeDtypeStruct((1, *shape), dtype, sharding=sharding)

        moment = array(jnp.float32, self.num_heads, 21, 128)
        given = {
            "x": array(jnp.bfloat16, self.num_heads, PAST, 128),
            "moments": Moments(moment, moment),
            "places": array(jnp.int32, 3),
        }
        if self.function is store:
            return given | {"frames": array(jnp.bfloat16, self.num_heads, CHUNK, 128)}
        return given | {"admitted": array(jnp.bool, 3), "trusted": array(jnp.bool, 21)}

    @property
    def nbytes(self) -> int:
        return 2 * self.num_heads * PAST * 128


@dataclasses.dataclass(frozen=True)
class RotationCase:
    """Keys of layers rotated at once, at a head_dim of 128 in bfloat16."""

    name: str
    num_heads: int
    num_layers: int
    groups: int = 1

    function = staticmethod(rotate_stack)
    may_copy: ClassVar[float] = COPIES_NONE

    def arguments(self, sharding: SingleDeviceSharding) -> dict[str, jax.ShapeDtypeStruct]:
        def array(dtype: Any, heads: int, *shape: int) -> jax.ShapeDtypeStruct:
            whole = (self.num_layers, 1, heads, *shape)
            return jax.ShapeDtypeStruct(whole, dtype, sharding=sharding)

        return {
            "x": array(jnp.bfloat16, self.num_heads, PAST, 128),
            "positions": array(jnp.int32, self.groups, PAST, 3),
        }

    @property
    def nbytes(self) -> int:
        # Positions are laid out anew.
        return 2 * self.num_layers * self.num_heads * PAST * 128


PAST = 21 * FRAME
RECALL = functools.partial(recall, tau=0.6)
LARGEST = Case("1.3B, 21 slots", 12, PAST, num_layers=30, slots=1)
CASES = (
    LARGEST,
    Case("1.3B, 21 slots per head", 12, PAST, num_layers=30, slots=12),
    Case("1.3B, lengths per head", 12, PAST, num_layers=30, lengths=12),
    Case("1.3B, tokens per head", 12, 18 * FRAME, num_layers=30, slots=12, run=1),
    Case("1.3B, slots, lengths, bias", 12, PAST, num_layers=30, slots=12, lengths=12, bias=12),
    Case("1.3B, float32", 12, PAST, num_layers=30, slots=1, dtype=jnp.float32),
    Case("1.3B, its own chunk", 12, CHUNK),
    Case("1.3B, text", 12, 512),
    # The cache of its 40 layers does not fit the smaller chips; that of 10 heads does.
    Case("14B, 21 slots per head, 10 layers", 40, PAST, num_layers=10, slots=40),
    Case("14B, lengths per head, 10 heads", 10, PAST, num_layers=40, lengths=10),
    Case("VAE, one head of 384", 1, 60 * 104, num_queries=60 * 104, head_dim=384),
    ScoringCase("1.3B, scoring six steps ahead", 12, 18 * FRAME, FRAME, horizon=6),
    ScoringCase("1.3B, scoring the chunk's", 12, 18 * FRAME, CHUNK, has_residuals=True),
    RotationCase("1.3B, RoPE of all layers", 12, 30),
    RotationCase("14B, RoPE of 10 layers", 40, 10),
    RoutingCase("1.3B, routing", 12),
    RoutingCase("14B, routing", 40),
    FramesCase("1.3B, recalling frames", 12, RECALL),
    FramesCase("1.3B, storing frames", 12, store),
    FramesCase("14B, recalling frames", 40, RECALL),
    FramesCase("14B, storing frames", 40, store),
)


def main(args: Args) -> None:
    unknown = {*args.chips, *([args.search] if args.search else [])} - {*TOPOLOGIES}
    if unknown:
        sys.exit(f"no topology is known for {sorted(unknown)}; there are {[*TOPOLOGIES]}")
    console = Console(width=120)
    if args.search is not None:
        console.print(searched(args.search))
        return
    table, failures = compiled(args.chips)
    console.print(table)
    if failures:
        sys.exit("\n".join(failures))


def compiled(chips: tuple[str, ...]) -> tuple[Table, list[str]]:
    table = Table("chip", "case", "compiled in", "temporaries", "keys, values, profiles", "FLOPs")
    failures = []
    for chip in chips:
        for case in CASES:
            start = time.perf_counter()
            try:
                program = compile_call(case.function, case.arguments(sharding_of(chip)))
            except Exception as error:
                failures.append(f"{case.name} on {chip}: {str(error).splitlines()[0]}")
                table.add_row(chip, case.name, "FAILS")
                continue
            seconds = time.perf_counter() - start
            memory, cost, text = (
                program.memory_analysis(), program.cost_analysis(), program.as_text()
            )  # fmt: skip
            if memory is None or cost is None or text is None:
                sys.exit("this libtpu does not tell what it has compiled")
            temporaries = memory.temp_size_in_bytes
            if "tpu_custom_call" not in text:
                failures.append(f"{case.name} on {chip}: the kernel was not chosen")
            if temporaries > max(case.may_copy * case.nbytes, 2 * 2**20):
                failures.append(f"{case.name} on {chip}: {temporaries} bytes of temporaries")
            table.add_row(
                chip, case.name, f"{seconds:.1f} s", f"{temporaries / 2**20:.2f} MiB",
                f"{case.nbytes / 2**20:.0f} MiB", f"{cost['flops']:.3g}",
            )  # fmt: skip
    return table, failures


def sharding_of(chip: str) -> SingleDeviceSharding:
    """One chip, or one of its cores."""
    return SingleDeviceSharding(tpu_devices(TOPOLOGIES[chip])[0])


def compile_call(function, arguments: dict[str, jax.ShapeDtypeStruct]):
    return jax.jit(function).lower(**arguments).compile()


def searched(chip: str) -> Table:
    """Tilings of the 1.3B's attention over 21 slots; the one in use is marked."""
    case = LARGEST
    dump = tempfile.TemporaryDirectory()
    # Read when libtpu is loaded, which is when the first topology is asked for.
    os.environ["LIBTPU_INIT_ARGS"] = f"--xla_jf_dump_to={dump.name} --xla_jf_dump_llo_text=true"
    arguments = case.arguments(sharding_of(chip))
    q, k = (
        jnp.zeros((1, 1, case.num_queries, case.head_dim), case.dtype),
        jnp.zeros((1, 1, PAST, 1)),
    )
    chosen = tpu.choose_tiling(q, Keys(k, k, slots=jnp.ones((1, 1, PAST // FRAME), bool)))
    results = []
    for queries in (1280, 1664, 2432):
        for keys, piece in ((1560, 256), (1560, 512), (1560, 784), (520, 520)):
            tiling = tpu.Tiling(queries, keys, piece)

            def call(q, k, v, layer, slots, tiling=tiling):
                return tpu.attention(q, Keys(k, v, layer, slots=slots), tiling)

            for file in Path(dump.name).iterdir():
                file.unlink()
            try:
                compile_call(call, arguments)
            except Exception as error:
                results.append((math.inf, tiling, str(error).splitlines()[0][:60]))
                continue
            instructions = scheduled_instructions(Path(dump.name))
            # Lanes that no query fills are computed all the same.
            filled = case.num_queries / (-(-case.num_queries // queries) * queries)
            flops = 4 * queries * keys * case.head_dim * filled
            share = flops / instructions / FLOPS_PER_CYCLE[chip]
            results.append((-share, tiling, f"{instructions}"))
    table = Table("queries", "keys", "piece", "instructions", "of peak", "", title=case.name)
    for share, tiling, note in sorted(results, reverse=True):
        mark = "in use" if tiling == chosen else ""
        table.add_row(*map(str, tiling), note, f"{max(0.0, -share):.1%}", mark)
    return table


def scheduled_instructions(dump: Path) -> int:
    """Length of the kernel's schedule from the first use of a matrix unit to the last.

    The compiler writes a table of the units each instruction uses, the matrix units first, for
    every program; the kernel's is the one that uses them most.
    """
    used = []
    for file in dump.glob("*final_hlo-static-per-bundle-utilization.txt"):
        rows = [line.split() for line in file.read_text().splitlines()[4:]]
        used.append(np.array([int(row[0]) for row in rows if row]))
    at = np.flatnonzero(max(used, key=np.sum))
    return int(at[-1] - at[0] + 1)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
