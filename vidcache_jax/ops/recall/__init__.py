"""TetherCache's edit of recalled frames, in place, and the moments that it goes by.

api      the one public call and the choice of an implementation
ref      the definition; everywhere
moments  mean and variance of each cached frame
tpu      a Pallas kernel
triton   a kernel for NVIDIA GPUs, by name only
table    the three by name
check    a kernel against ref on the device at hand
"""

from vidcache_jax.ops.recall.api import recall as recall
from vidcache_jax.ops.recall.moments import Moments as Moments
from vidcache_jax.ops.recall.moments import empty_moments as empty_moments
from vidcache_jax.ops.recall.moments import frame_moments as frame_moments
from vidcache_jax.ops.recall.moments import put_moments as put_moments
