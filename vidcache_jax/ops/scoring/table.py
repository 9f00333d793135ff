"""The implementations of scoring that there are, called as `column_means`."""

from collections.abc import Mapping

from vidcache_jax.ops.implementations import Implementation
from vidcache_jax.ops.mosaic import reason_against_heads
from vidcache_jax.ops.scoring import ref, tpu
from vidcache_jax.ops.triton_versions import in_triton

IMPLEMENTATIONS: Mapping[str, Implementation] = {
    "xla": Implementation(ref.column_means, lambda q: None),
    "tpu": Implementation(tpu.column_means, reason_against_heads, "tpu"),
    "triton": in_triton("vidcache_jax.ops.scoring.triton", "column_means"),
}
