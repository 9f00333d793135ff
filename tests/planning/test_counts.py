import pytest

from vidcache_jax.config import RolloutConfig, WanConfig
from vidcache_jax.planning.counts import chunk_work

SMALL, LARGE = WanConfig.wan_1_3b(), WanConfig.wan_14b()


@pytest.mark.parametrize(
    "config, frames, teraflops",
    # Passes of 40.41, 28.30 and 239.5 TFLOP, five to a chunk.
    [(SMALL, 21, 202.0), (SMALL, 12, 141.5), (LARGE, 21, 1197)],
)
def test_work_of_a_chunk_at_480_by_832(config, frames, teraflops):
    work = chunk_work(config, RolloutConfig(), (60, 104), frames)
    assert work.total / 1e12 == pytest.approx(teraflops, rel=1e-3)


def test_a_multiplication_by_hand():
    config = WanConfig(
        dim=8, ffn_dim=3, num_heads=2, num_layers=5, text_len=7, freq_dim=2, text_dim=1,
        in_dim=1, out_dim=1, patch_size=(1, 1, 1),
    )  # fmt: skip
    rollout = RolloutConfig(frames_per_chunk=2, denoise_timesteps=(1000,))
    work = chunk_work(config, rollout, (1, 3), 4)
    # Two passes of five layers over 6 tokens.
    assert work.linear == 2 * 5 * 6 * 2 * (6 * 64 + 2 * 24)
    assert work.attention == 2 * 5 * 6 * 4 * (12 + 7) * 8
