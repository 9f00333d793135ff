"""C6 in the model: the commit pass updates a donated cache in place."""

import jax
import jax.numpy as jnp

from vidcache_jax.cache.policy import CachePolicy, StackedPolicy
from vidcache_jax.cache.state import CacheSpec, StackedCache
from vidcache_jax.config import WanConfig
from vidcache_jax.models import wan_dit
from vidcache_jax.testing.hlo import cache_sized_copies
from vidcache_jax.testing.view_clauses import require


def check_in_place(
    policy: CachePolicy, num_heads: int, num_layers: int, frames_per_chunk: int
) -> None:
    """C6: the model's commit pass aliases every cache buffer and copies none."""
    # Only the tokens have this factor beside the layers and the width: no weight can be mistaken
    # for a buffer of the cache.
    columns = 5 if num_heads % 5 else 7
    config = WanConfig(
        dim=12 * num_heads, ffn_dim=37, num_heads=num_heads, num_layers=num_layers, freq_dim=8,
        text_len=3, text_dim=7, in_dim=2, out_dim=2, patch_size=(1, 1, 1),
    )  # fmt: skip
    spec = wan_dit.cache_spec(config, 1, (1, columns), frames_per_chunk, jnp.float32)
    compiled, leaves = compile_commit(policy, config, spec)
    nbytes = wan_dit.cache_nbytes(leaves)
    memory = compiled.memory_analysis()
    aliased = memory.alias_size_in_bytes if memory else 0
    require(
        aliased >= nbytes,
        "C6",
        f"the commit pass aliases {aliased} bytes of a cache of {nbytes}: not every buffer is "
        "updated in place",
    )
    copies = cache_sized_copies(compiled, leaves)
    require(not copies, "C6", "the commit pass copies a whole cache buffer: " + "; ".join(copies))


def compile_commit(
    policy: StackedPolicy, config: WanConfig, spec: CacheSpec, cache: StackedCache = None
):
    """The model's commit pass with a donated cache, compiled; and the leaves of that cache.

    ``cache`` is an empty one unless given.
    """
    if cache is None:
        assert isinstance(policy, CachePolicy)
        cache = policy.init_layers(spec, config.num_layers)
    leaves, treedef = jax.tree.leaves(cache), jax.tree.structure(cache)

    def commit(leaves, params, latents, timestep, text_kv, start_frame):
        cache, _ = wan_dit.commit(
            params, config, policy, latents, timestep, text_kv,
            jax.tree.unflatten(treedef, leaves), start_frame,
        )  # fmt: skip
        return jax.tree.leaves(cache)

    array = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    frames = (spec.batch, spec.frames_per_chunk)
    lowered = jax.jit(commit, donate_argnums=0).lower(
        leaves,
        wan_dit.abstract_params(config),
        array(*frames, *spec.grid, config.in_dim),
        array(*frames),
        wan_dit.abstract_text(config, spec.batch),
        jax.ShapeDtypeStruct((), jnp.int32),
    )
    return lowered.compile(), leaves
