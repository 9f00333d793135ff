"""Processes that make different videos choose layers for all of them, as one process does."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.sampling.ispa_transition import transition

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("quick")


def test_the_transition():
    expected = transition(jax.devices()[:2])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.sampling.ispa_transition", str(port), str(own)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT,
        )
        for own in range(2)
    ]  # fmt: skip
    assert expected["0"] != expected["1"]
    for own, process in enumerate(processes):
        printed, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
        [(video, residuals)] = json.loads(printed.splitlines()[-1]).items()
        assert video == str(own)
        np.testing.assert_array_equal(residuals, expected[video])
