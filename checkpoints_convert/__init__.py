"""PyTorch checkpoints -> vidcache_jax parameters, by tables of rules with full coverage."""

from checkpoints_convert.wan import convert_dit as convert_dit
