"""What attention each cached key receives: means over queries, without the query-by-key matrix.

api      the one public call and the choice of an implementation
ref      the definition, in blocks; everywhere
rotated  what the kernels share
tpu      a Pallas kernel
triton   kernels for NVIDIA GPUs, by name only
table    all by name
check    a kernel against ref on the device at hand
"""

from vidcache_jax.ops.scoring.api import column_means as column_means
from vidcache_jax.ops.scoring.ref import ColumnMeans as ColumnMeans
