"""For authors of cache policies: the shared contract test and what it is made of.

    from vidcache_jax.testing import check_policy

    def test_contract():
        check_policy(MyPolicy(...), chunk_sizes=(1, 3))

`check_policy` needs the ``test`` extra; everything else works without it.
"""

from vidcache_jax.testing.contract import check_policy as check_policy
from vidcache_jax.testing.hlo import cache_sized_copies as cache_sized_copies
from vidcache_jax.testing.in_place import compile_commit as compile_commit
from vidcache_jax.testing.recording import Recorded as Recorded
from vidcache_jax.testing.recording import Recording as Recording
from vidcache_jax.testing.recording import recorded_rollout as recorded_rollout
from vidcache_jax.testing.tolerances import TOLERANCES as TOLERANCES
from vidcache_jax.testing.tolerances import assert_close as assert_close
from vidcache_jax.testing.tolerances import same_bits as same_bits
from vidcache_jax.testing.tolerances import tolerance as tolerance
from vidcache_jax.testing.trial import Attended as Attended
from vidcache_jax.testing.trial import ChunkRecord as ChunkRecord
from vidcache_jax.testing.trial import Trial as Trial
from vidcache_jax.testing.trial import ViewRecord as ViewRecord
from vidcache_jax.testing.trial import chunk_of as chunk_of
from vidcache_jax.testing.trial import random_chunk as random_chunk
