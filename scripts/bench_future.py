"""What Future Forcing costs at the shape of Wan 1.3B; prints two tables. Nothing is run.

    python scripts/bench_future.py

*FLOPs* of a chunk, all layers: the compiler's `cost_analysis` of the operations in `ops.scoring`
and `ops.merge`. It counts a loop's body once, so they are compiled with one loop at most, over
blocks of keys, and multiplied by its length. Next to it the matrix products by formula, with Q
proxies for each of delta steps, S cached, E evicted and R kept tokens, T queries of the chunk, and
width D = heads x channels:

    future     2 passes x 2 delta Q S D          history    2 T S D (the attention's residuals
    routing    2 delta E R heads                            save the first pass)

What the analysis has beyond that is the rotation of keys and queries, exponentials and sums. The
share is of the model's own work in a chunk with this budget, by formula.

*Memory*: `memory_analysis` of one layer's `commit` and `evict`, looped as they really are, with a
donated cache. In float32: XLA's CPU backend has no narrower arithmetic and would convert whole
bfloat16 buffers, which no accelerator does.
"""

import dataclasses

import jax
import jax.numpy as jnp
import tyro
from rich.console import Console
from rich.table import Table

import vidcache_jax as vj
from vidcache_jax.cache import CacheSpec
from vidcache_jax.models import wan_dit
from vidcache_jax.ops.attention import AttentionPart
from vidcache_jax.ops.blocks import block_size
from vidcache_jax.ops.merge import ref as merge
from vidcache_jax.ops.scoring import ref as scoring
from vidcache_jax.testing import chunk_of

CONFIG = vj.WanConfig.wan_1_3b()
FRAMES, PASSES = 3, 5
WHOLE, MOST_KEYS = 10**9, 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args:
    """Sizes."""

    budget: int = 18
    strides: tuple[int, ...] = (1, 4, 16)
    latent_size: tuple[int, int] = (60, 104)


def main(args: Args) -> None:
    console = Console(width=100)
    console.print(flops_table(args))
    console.print(memory_table(args))


def flops_table(args: Args) -> Table:
    spec = wan_dit.cache_spec(CONFIG, 1, args.latent_size, FRAMES, jnp.bfloat16)
    policy = vj.FutureForcing(args.budget)
    delta, layers = policy.delta_max, CONFIG.num_layers
    frame, chunk = spec.tokens_per_frame, FRAMES * spec.tokens_per_frame
    cached = args.budget * frame
    past = cached - chunk
    model = chunk_flops(chunk, cached)
    table = Table("work", "cost analysis", "formula", "share of a chunk",
                  title=f"TFLOP a chunk, budget {args.budget}, {frame} tokens a frame")  # fmt: skip

    def add(name: str, counted: float, formula: float) -> None:
        shown = (f"{layers * flops / 1e12:.3f}" for flops in (counted, formula))
        table.add_row(name, *shown, f"{layers * counted / model:.1%}")

    for stride in args.strides:
        proxies = -(-frame // stride)
        counted = delta * scoring_flops(spec, proxies, cached, has_residuals=False)
        formula = 2 * 2 * delta * proxies * cached * CONFIG.dim
        add(f"future, stride {stride}: {proxies} proxies", counted, formula)
    counted = scoring_flops(spec, chunk, cached, has_residuals=True)
    add("history", counted, 2 * chunk * cached * CONFIG.dim)
    heads = (1, CONFIG.num_heads)
    routing = merge.route.lower(
        array(*heads, delta, chunk), array(*heads, delta, past),
        array(*heads, past, dtype=jnp.int32), most_evicted=WHOLE, most_retained=WHOLE,
    )  # fmt: skip
    add("routing", flops_of(routing), 2 * delta * chunk * past * CONFIG.num_heads)
    return table


def chunk_flops(chunk: int, cached: int) -> float:
    """Of the model: linear layers, self-attention and cross-attention in five passes."""
    dim, ffn = CONFIG.dim, CONFIG.ffn_dim
    linear = 2 * chunk * (6 * dim**2 + 2 * dim * ffn)
    attention = 4 * chunk * (cached + CONFIG.text_len) * dim
    return float(PASSES * CONFIG.num_layers * (linear + attention))


def scoring_flops(spec: CacheSpec, queries: int, keys: int, *, has_residuals: bool) -> float:
    heads = (1, spec.num_heads)
    of = lambda tokens, *last, dtype=spec.dtype: array(*heads, tokens, *last, dtype=dtype)
    attended = abstract_attention(spec, queries)
    lowered = scoring.column_means.lower(
        of(queries, spec.head_dim), of(queries, 3, dtype=jnp.int32),
        of(keys, spec.head_dim), of(keys, 3, dtype=jnp.int32), of(keys, dtype=jnp.bool_),
        attended if has_residuals else None, most_queries=WHOLE, most_keys=MOST_KEYS,
    )  # fmt: skip
    # More than one block: in one, the compiler would find the logits of both passes to be the same.
    return keys / block_size(keys, MOST_KEYS) * flops_of(lowered)


def abstract_attention(spec: CacheSpec, queries: int) -> AttentionPart:
    zeros = lambda *last: jnp.zeros((1, spec.num_heads, queries, *last), jnp.float32)
    return jax.eval_shape(lambda: AttentionPart(zeros(spec.head_dim), zeros(), zeros()))


def array(*shape: int, dtype=jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def flops_of(lowered: jax.stages.Lowered) -> float:
    analysis = lowered.compile().cost_analysis()
    if analysis is None:
        raise RuntimeError("this backend has no cost analysis")
    return analysis["flops"]


def memory_table(args: Args) -> Table:
    table = Table("method", "temporary MB", "of the layer's cache", title="memory, float32")
    for stride in args.strides:
        policy = vj.FutureForcing(args.budget, proxy_token_stride=stride)
        for method, (temporary, share) in update_memory(policy, args.latent_size).items():
            table.add_row(f"{method}, stride {stride}", f"{temporary / 1e6:.1f}", f"{share:.1%}")
    return table


def update_memory(
    policy: vj.FutureForcing, latent_size: tuple[int, int]
) -> dict[str, tuple[int, float]]:
    """Temporary bytes of one layer's `commit` and `evict`, and their share of its cache."""
    spec = wan_dit.cache_spec(CONFIG, 1, latent_size, FRAMES, jnp.float32)
    shape = (1, spec.num_heads, FRAMES * spec.tokens_per_frame, spec.head_dim)
    heads = tuple(array(*shape) for _ in range(3))
    residuals = tuple(array(*shape[:3]) for _ in range(2))
    cache, treedef = flat_cache(policy, spec)

    # Arrays pass in and out one by one: what is typed for arrays is not made of their shapes.
    def commit(leaves, q, k, v):
        chunk = chunk_of(spec, q, k, v, jnp.zeros((), jnp.int32))
        return jax.tree.leaves(policy.commit(jax.tree.unflatten(treedef, leaves), chunk))

    def evict(leaves, q, k, v, top, total):
        chunk = chunk_of(spec, q, k, v, jnp.zeros((), jnp.int32))
        attended = AttentionPart(jnp.zeros_like(q), top, total)
        return jax.tree.leaves(policy.evict(jax.tree.unflatten(treedef, leaves), chunk, attended))

    found = {}
    for method, inputs in ((commit, heads), (evict, (*heads, *residuals))):
        program = jax.jit(method, donate_argnums=0).lower(cache, *inputs).compile()
        memory = program.memory_analysis()
        if memory is None:
            raise RuntimeError("this backend has no memory analysis")
        temporary = memory.temp_size_in_bytes
        found[method.__name__] = temporary, temporary / wan_dit.cache_nbytes(cache)
    return found


def flat_cache(policy: vj.FutureForcing, spec: CacheSpec):
    """Shapes of a cache's leaves, and their tree."""
    trees = []

    def leaves():
        leaves, tree = jax.tree.flatten(policy.init(spec))
        trees.append(tree)
        return leaves

    return jax.eval_shape(leaves), trees[0]


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
