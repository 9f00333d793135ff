"""Attention over parts of the past, with the residuals that merge parts exactly.

api    the one public call and the choice of an implementation
keys   what is attended to: keys, values, and which of them count
ref    the definition, and the merge of parts
xla    the definition in chunks; everywhere
tpu    a Pallas kernel
gpu    cuDNN
hopper a Pallas kernel for H100 and H200; ranges are the blocks of keys that it visits
table  them by name
check  a kernel against xla on the device at hand
"""

from vidcache_jax.ops.attention.api import attention as attention
from vidcache_jax.ops.attention.check import check_implementation as check_implementation
from vidcache_jax.ops.attention.ref import AttentionPart as AttentionPart
from vidcache_jax.ops.attention.ref import merge as merge
