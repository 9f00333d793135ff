"""What attention each cached key receives: means over queries, without the query-by-key matrix."""

from vidcache_jax.ops.scoring.api import column_means as column_means
from vidcache_jax.ops.scoring.ref import ColumnMeans as ColumnMeans
