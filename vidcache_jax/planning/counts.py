"""Work of a chunk, counted from shapes: floating-point operations, a multiply-add as two."""

import dataclasses

from vidcache_jax.config import RolloutConfig, WanConfig


@dataclasses.dataclass(frozen=True)
class Work:
    """Operations of one chunk of one video, all passes.

    With q tokens in the chunk, n that each query attends to (its own chunk included), L layers,
    width d and feed-forward width f, a pass takes

        linear           2 q L (6 d^2 + 2 d f)     q, k, v, o; q, o over the text; feed-forward
        self-attention   4 q n d L
        text             4 q text_len d L

    Embeddings, head and norms, together under a hundredth, are left out.
    """

    linear: float
    attention: float

    @property
    def total(self) -> float:
        return self.linear + self.attention


def chunk_work(
    config: WanConfig, rollout: RolloutConfig, latent_size: tuple[int, int], attended_frames: float
) -> Work:
    """Work of the denoise passes and the commit pass.

    Args:
      attended_frames: latent frames a query attends to, the chunk's own included; a mean over
        heads and layers where they differ.
    """
    rows, columns = config.token_grid(*latent_size)
    queries = rollout.frames_per_chunk * rows * columns
    keys = attended_frames * rows * columns
    passes = len(rollout.denoise_timesteps) + 1
    width, layers = config.dim, config.num_layers
    linear = 2 * queries * layers * (6 * width**2 + 2 * width * config.ffn_dim)
    attention = 4 * queries * (keys + config.text_len) * width * layers
    return Work(passes * linear, passes * attention)
