"""Small models of every shape, with their weights on both sides: NumPy oracle and package."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from checkpoints_convert import convert_dit
from tests.models.wan_oracle import WanOracle
from tests.models.wan_state import random_state
from vidcache_jax.config import WanConfig
from vidcache_jax.models import wan_dit

SMALL = dict(text_len=5, in_dim=3, dim=24, ffn_dim=20, freq_dim=8, text_dim=7, out_dim=3,
             num_heads=2, num_layers=2)  # fmt: skip

QUICK = {"xla_backend_optimization_level": 0}
"""Compiler options: the same HLO, machine code unoptimised, compiled in half the time."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A model and the size of what runs through it."""

    config: WanConfig
    latent_size: tuple[int, int] = (4, 6)
    batch: int = 1

    def normal(self, seed: int, *shape: int) -> np.ndarray:
        return np.random.default_rng(seed).normal(size=shape).astype(np.float32)

    def latents(self, seed: int, *leading: int) -> np.ndarray:
        """[*leading, Y, X, C]."""
        return self.normal(seed, *leading, *self.latent_size, self.config.in_dim)

    @functools.cached_property
    def text(self) -> np.ndarray:
        """One token short of text_len where there is room, so that padding counts."""
        length = max(self.config.text_len - 1, 1)
        return self.normal(77, self.batch, length, self.config.text_dim)

    @functools.cached_property
    def state(self) -> dict[str, np.ndarray]:
        return random_state(self.config)

    @functools.cached_property
    def oracle(self) -> WanOracle:
        return WanOracle(self.state, self.config)

    @functools.cached_property
    def params(self) -> Any:
        return convert_dit(self.state, self.config)

    @functools.cached_property
    def text_kv(self) -> Any:
        encode = jax.jit(wan_dit.encode_text, static_argnums=1, compiler_options=QUICK)
        return encode(self.params, self.config, jnp.asarray(self.text))


def case(latent_size=(4, 6), batch=1, **fields) -> Case:
    return Case(WanConfig(**{**SMALL, **fields}), latent_size, batch)
