"""The implementations of routing and of merging that there are."""

from collections.abc import Mapping

from vidcache_jax.ops.implementations import Implementation
from vidcache_jax.ops.merge import ref, tpu

ROUTING: Mapping[str, Implementation] = {
    "xla": Implementation(ref.route, lambda evicted: None),
    "tpu": Implementation(tpu.route, tpu.reason_against, "tpu"),
}
"""Called as `route`."""
MERGING: Mapping[str, Implementation] = {"xla": Implementation(ref.merge_values, lambda v: None)}
"""Called as `merge_values`."""
