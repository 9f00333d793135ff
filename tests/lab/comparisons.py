"""A comparison of two policies that takes seconds: random weights, three chunks a video."""

import dataclasses

import vidcache_jax as vj
from tests.toy import toy_model
from vidcache_jax.lab.comparison import Comparison

LABELS = ("sliding-window:window_size=6,sink_size=0", "full")
PROMPTS = ("a red circle bounces", "a blue square drifts left")
MODEL = toy_model()


def comparison(**changes) -> Comparison:
    plain = Comparison(
        model=MODEL,
        policies={LABELS[0]: vj.SlidingWindow(window_size=6), LABELS[1]: vj.FullCache(12)},
        prompts=PROMPTS,
        seeds=(0, 1),
        seconds=9 / 8,
    )
    return dataclasses.replace(plain, **changes)
