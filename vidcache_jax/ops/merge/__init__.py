"""Folding evicted tokens into the retained ones that future queries cannot tell from them."""

from vidcache_jax.ops.merge.api import merge_values as merge_values
from vidcache_jax.ops.merge.api import route as route
