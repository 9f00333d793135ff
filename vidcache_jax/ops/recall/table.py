"""The implementations of recall that there are, called as `ref.recall`."""

from collections.abc import Mapping

from vidcache_jax.ops.implementations import Implementation
from vidcache_jax.ops.recall import ref, tpu
from vidcache_jax.ops.triton_versions import in_triton

IMPLEMENTATIONS: Mapping[str, Implementation] = {
    "xla": Implementation(ref.recall, lambda x, num_slots: None),
    "tpu": Implementation(tpu.recall, tpu.reason_against, "tpu"),
    "triton": in_triton("vidcache_jax.ops.recall.triton", "recall"),
}
