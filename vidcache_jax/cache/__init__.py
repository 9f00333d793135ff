"""Cache policies: one file each, one row in `POLICIES` each."""

from collections.abc import Mapping

from vidcache_jax.cache.full import FullCache as FullCache
from vidcache_jax.cache.future_forcing import FutureForcing as FutureForcing
from vidcache_jax.cache.head_forcing import HeadForcing as HeadForcing
from vidcache_jax.cache.head_roles import HeadRoles as HeadRoles
from vidcache_jax.cache.ispa import ISPA as ISPA
from vidcache_jax.cache.policy import CachePolicy as CachePolicy
from vidcache_jax.cache.sliding_window import SlidingWindow as SlidingWindow
from vidcache_jax.cache.state import CacheSpec as CacheSpec
from vidcache_jax.cache.state import CacheView as CacheView
from vidcache_jax.cache.state import Chunk as Chunk
from vidcache_jax.cache.state import SlotCache as SlotCache
from vidcache_jax.cache.tether_cache import TetherCache as TetherCache

POLICIES: Mapping[str, type[CachePolicy]] = {
    "full": FullCache,
    "sliding-window": SlidingWindow,
    "tethercache": TetherCache,
    "head-forcing": HeadForcing,
    "future-forcing": FutureForcing,
    "ispa": ISPA,
}
