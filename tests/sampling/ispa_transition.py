"""ISPA's transition on a mesh, by itself; as a program, in one of two processes with a video each.

python -m tests.sampling.ispa_transition PORT PROCESS
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import vidcache_jax as vj
from tests.toy import toy_model
from vidcache_jax.cache.absorption import StreamStatistics
from vidcache_jax.sampling.rollout import Rollout
from vidcache_jax.sharding import DATA, Layout, make_mesh, to_chips


def transition(devices: Sequence[Any]) -> dict[str, list[float]]:
    """The share of each layer that is lost without dW and with it, of this process's videos."""
    layout, model = Layout(make_mesh(data=2, devices=devices)), toy_model()
    policy = vj.ISPA(vj.SlidingWindow(7, 2), warmup_frames=3)
    rollout = Rollout(model.config, model.rollout, policy, layout)
    state = rollout.init(2, model.latent_size, jnp.float32)
    shape = (2, model.config.num_layers, 2, 50, model.config.dim)
    local, full = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    pairs = ((local, local), (local, full), (full, full))
    spread = lambda one, two: to_chips(np.swapaxes(one, -1, -2) @ two, layout.named(None, DATA))
    products = StreamStatistics(*(spread(*pair) for pair in pairs))
    params = layout.spread(model.params)
    _, after = rollout.advance(params, dataclasses.replace(state, statistics=products), 3)
    found: dict[str, list[float]] = {}
    for residual in (after.cache.residual_before, after.cache.residual_after):
        for shard in residual.addressable_shards:
            found.setdefault(str(shard.index[1].start), []).extend(shard.data[:, 0].tolist())
    return found


if __name__ == "__main__":
    jax.distributed.initialize(f"127.0.0.1:{sys.argv[1]}", 2, int(sys.argv[2]))
    print(json.dumps(transition(jax.devices())))
