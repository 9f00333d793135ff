"""Long autoregressive video diffusion in JAX, with memory as a plug-in."""

__version__ = "0.1.0"

from vidcache_jax.cache import ISPA as ISPA
from vidcache_jax.cache import POLICIES as POLICIES
from vidcache_jax.cache import CachePolicy as CachePolicy
from vidcache_jax.cache import FullCache as FullCache
from vidcache_jax.cache import FutureForcing as FutureForcing
from vidcache_jax.cache import HeadForcing as HeadForcing
from vidcache_jax.cache import HeadRoles as HeadRoles
from vidcache_jax.cache import SlidingWindow as SlidingWindow
from vidcache_jax.cache import TetherCache as TetherCache
from vidcache_jax.config import RolloutConfig as RolloutConfig
from vidcache_jax.config import WanConfig as WanConfig
from vidcache_jax.loading import load_model as load_model
from vidcache_jax.models.video_model import VideoModel as VideoModel
from vidcache_jax.sampling.contact_sheet import ContactSheet as ContactSheet
from vidcache_jax.sampling.prefix import read_prefix as read_prefix
from vidcache_jax.sampling.replay import Replay as Replay
from vidcache_jax.sampling.replay import replay as replay
from vidcache_jax.sampling.session import Session as Session
from vidcache_jax.sampling.writer import VideoWriter as VideoWriter
