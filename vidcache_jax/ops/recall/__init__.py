"""TetherCache's edit of recalled frames, in place, and the moments of frames that it goes by.

api      the public calls and the choice of their implementation
ref      the definition; everywhere
moments  mean and variance of each cached frame
tpu      Pallas kernels
triton   a kernel for NVIDIA GPUs, by name only
table    all by name
check    a kernel against ref on the device at hand
"""

from vidcache_jax.ops.recall.api import recall as recall
from vidcache_jax.ops.recall.api import store as store
from vidcache_jax.ops.recall.moments import Moments as Moments
from vidcache_jax.ops.recall.moments import empty_moments as empty_moments
