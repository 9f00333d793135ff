"""Converted checkpoints: a folder of weights and what is known of them, read here.

They are written by ``checkpoints_convert``.
"""

from vidcache_jax.checkpoint.error import CheckpointError as CheckpointError
from vidcache_jax.checkpoint.info import CheckpointInfo as CheckpointInfo
from vidcache_jax.checkpoint.info import SourceFile as SourceFile
from vidcache_jax.checkpoint.info import read_info as read_info
from vidcache_jax.checkpoint.reader import load_checkpoint as load_checkpoint
from vidcache_jax.checkpoint.reader import restore_params as restore_params
