"""The implementations of `rotate_stack` that there are, called as that of `ref`."""

from collections.abc import Mapping

from vidcache_jax.ops.implementations import Implementation
from vidcache_jax.ops.rope_stack import ref, tpu

IMPLEMENTATIONS: Mapping[str, Implementation] = {
    "xla": Implementation(ref.rotate_stack, lambda x: None),
    "tpu": Implementation(tpu.rotate_stack, tpu.reason_against, "tpu"),
}
