"""The implementations of routing and of merging that there are."""

from collections.abc import Mapping

from vidcache_jax.ops.implementations import Implementation
from vidcache_jax.ops.merge import ref, tpu
from vidcache_jax.ops.triton_versions import in_triton

_TRITON = "vidcache_jax.ops.merge.triton"

ROUTING: Mapping[str, Implementation] = {
    "xla": Implementation(ref.route, lambda evicted: None),
    "tpu": Implementation(tpu.route, tpu.reason_against, "tpu"),
    "triton": in_triton(_TRITON, "route"),
}
"""Called as `route`."""
MERGING: Mapping[str, Implementation] = {
    "xla": Implementation(ref.merge_values, lambda: None),
    "triton": in_triton(_TRITON, "merge_values"),
}
"""Called as `merge_values`."""
