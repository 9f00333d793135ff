"""The implementations of recalling and of storing that there are, called as those of `ref`."""

from collections.abc import Mapping

from vidcache_jax.ops.implementations import Implementation
from vidcache_jax.ops.recall import ref, tpu
from vidcache_jax.ops.triton_versions import in_triton

IMPLEMENTATIONS: Mapping[str, Mapping[str, Implementation]] = {
    "recall": {
        "xla": Implementation(ref.recall, lambda x, num_slots: None),
        "tpu": Implementation(tpu.recall, tpu.reason_against, "tpu"),
        "triton": in_triton("vidcache_jax.ops.recall.triton", "recall"),
    },
    "store": {
        "xla": Implementation(ref.store, lambda x, num_slots: None),
        "tpu": Implementation(tpu.store, tpu.reason_against, "tpu"),
    },
}
"""By operation and name."""
