"""PyTorch checkpoints <-> vidcache_jax parameters, by tables of rules with full coverage.

files    open_source       .safetensors, .pt, folders: names and shapes, nothing read
names    plain_names       without wrappers; recognise says whose names they are
rules    lazy_params       every tensor exactly one rule, every parameter filled
weights  save_checkpoint   layer by layer into a folder that vidcache_jax.checkpoint reads

A whole pipeline is opened by open_pipeline and converted part by part into one folder.
"""

from checkpoints_convert.companions import convert_umt5 as convert_umt5
from checkpoints_convert.companions import convert_vae as convert_vae
from checkpoints_convert.companions import open_text_encoder as open_text_encoder
from checkpoints_convert.companions import open_vae as open_vae
from checkpoints_convert.convert import convert as convert
from checkpoints_convert.dit import convert_dit as convert_dit
from checkpoints_convert.dit import open_dit as open_dit
from checkpoints_convert.export import export as export
from checkpoints_convert.export import invert_dit as invert_dit
from checkpoints_convert.families import FAMILIES as FAMILIES
from checkpoints_convert.pipeline import convert_pipeline as convert_pipeline
from checkpoints_convert.pipeline import find_companions as find_companions
from checkpoints_convert.pipeline import open_pipeline as open_pipeline
from checkpoints_convert.pipeline import verify_pipeline as verify_pipeline
from checkpoints_convert.verify import verify as verify
from checkpoints_convert.writer import save_checkpoint as save_checkpoint
from vidcache_jax.checkpoint import CheckpointError as CheckpointError
from vidcache_jax.checkpoint import load_checkpoint as load_checkpoint
