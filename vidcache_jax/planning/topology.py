"""TPU slices that need not be there, as devices to compile for."""

import os
import threading
from typing import Any

from jax.experimental import topologies

from vidcache_jax.planning.refusal import first_lines
from vidcache_jax.planning.slices import chips_of

LOADING = threading.Lock()
"""JAX loads libtpu for the first topology, and fails if two threads make it do so at once."""


def tpu_devices(topology: str) -> list[Any]:
    """Devices of a slice such as ``"v5e:2x4"``.

    Raises:
      ValueError: libtpu is not installed, or there is no such slice.
    """
    # There is no cloud machine to ask for its chips, and no chip that another process could hold.
    # libtpu reads this when it is loaded.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    # That the two are not said it would complain of; any will do for whatever slice.
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    # By default a host has 2 x 2 chips, which one chip is not.
    alone = {"chips_per_host_bounds": (1, 1, 1)} if chips_of(topology)[1] == 1 else {}
    try:
        with LOADING:
            described = topologies.get_topology_desc(
                topology_name=topology, platform="tpu", **alone
            )
    except Exception as error:  # libtpu has no error type of its own
        raise ValueError(
            f"no TPU slice {topology!r}: {first_lines(error)}\n"
            'The compiler for TPUs comes with pip install "vidcache-jax[tpu]".'
        ) from error
    return list(described.devices)
