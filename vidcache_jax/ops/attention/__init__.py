"""Attention over parts of the past, with the residuals that merge parts exactly."""

from vidcache_jax.ops.attention.api import attention as attention
from vidcache_jax.ops.attention.ref import AttentionPart as AttentionPart
from vidcache_jax.ops.attention.ref import merge as merge
