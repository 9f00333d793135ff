"""Wan 2.1's causal video autoencoder, streaming in both directions."""

from vidcache_jax.models.wan_vae.codec import WanVAE as WanVAE
from vidcache_jax.models.wan_vae.config import WanVAEConfig as WanVAEConfig
