"""Folding evicted tokens into the retained ones that future queries cannot tell from them.

api    the public calls, routing and merging, and the choice of their implementations
ref    their definitions, in blocks; everywhere
tpu    a Pallas kernel for routing
table  all by name
check  a kernel against ref on the device at hand
"""

from vidcache_jax.ops.merge.api import merge_values as merge_values
from vidcache_jax.ops.merge.api import route as route
