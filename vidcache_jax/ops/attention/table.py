"""The implementations of attention that there are, called as ``(q, keys)``."""

from collections.abc import Mapping

from vidcache_jax.ops.attention import gpu, hopper, tpu, xla
from vidcache_jax.ops.implementations import Implementation

IMPLEMENTATIONS: Mapping[str, Implementation] = {
    "xla": Implementation(xla.attention, lambda q, keys: None),
    "tpu": Implementation(xla.with_gradient(tpu.attention), tpu.reason_against, "tpu"),
    "gpu": Implementation(xla.with_gradient(gpu.attention), gpu.reason_against, "cuda"),
    # By name until it has been timed beside cuDNN.
    "hopper": Implementation(xla.with_gradient(hopper.attention), hopper.reason_against),
}
