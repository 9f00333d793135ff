"""Mean and standard deviation of the latents: the drift that the model itself sees."""

from collections.abc import Mapping

import numpy as np

from vidcache_jax.metrics.gauge import ChunkLatents, Frames


class LatentMomentsGauge:
    """``latent_mean`` and ``latent_std`` over all latents of a chunk.

    Latents are normalised for the model, so the data have about 0 and 1. Their drift is what
    TetherCache's paper plots for the accumulation of errors (arXiv 2606.13035).
    """

    def update(self, frames: Frames, latents: ChunkLatents) -> Mapping[str, float]:
        values = latents.astype(np.float64)
        return {"latent_mean": float(values.mean()), "latent_std": float(values.std())}
