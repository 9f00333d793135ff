"""An independent account of ISPA's life: the rows themselves, least squares, float64, one video.

Every forward pass is counted, so that the sampler around it needs to know nothing.
"""

import numpy as np

from tests.models.wan_oracle import WanOracle


class IspaOracle(WanOracle):
    """The DiT under a window with a sink, whose layers lose their history after ``warm_passes``."""

    def __init__(
        self, state, config, *, warm_passes, passes_per_chunk, count, mu0, sink_frames=1,
        affine=False, observed=lambda index: True,
    ):  # fmt: skip
        super().__init__(state, config)
        self.warm_passes, self.passes_per_chunk = warm_passes, passes_per_chunk
        self.count, self.mu0, self.sink_frames = count, mu0, sink_frames
        self.affine = affine
        """Whether the bias may change: A_local then has a last column of ones."""
        self.observed = observed
        """Index of a pass -> whether it is gathered."""
        self.passes = 0
        self.rows = {}
        """Name of an output projection -> pairs (A_local, A_full) [T, D]."""
        self.absorbed = {}
        """Name of an L-layer's output projection -> W + dW."""
        self.residuals = {}
        """Name -> relative residual (with W, with W + dW)."""

    def forward(self, *args):
        if self.passes == self.warm_passes:
            self.absorb()
        out = super().forward(*args)
        self.passes += 1
        return out

    def self_attention(self, output, q, positions, past, own, grid):
        # A frame of the sink is at its own number under any window with a sink.
        sink = [frame for frame in past if frame[0] < self.sink_frames]
        local = self.attend_frames(q, positions, [*sink, *own], grid)
        local = np.concatenate([local, np.ones((len(local), int(self.affine)))], axis=1)
        if output in self.absorbed:
            return local @ self.absorbed[output] + self.state[f"{output}.bias"]
        full = self.attend_frames(q, positions, [*past, *own], grid)
        if self.passes < self.warm_passes and self.observed(self.passes):
            self.rows.setdefault(output, []).append((local, full))
        return self._linear(output, full)

    def absorb(self):
        solved = {}
        for name, pairs in self.rows.items():
            local, full = (np.concatenate(stream) for stream in zip(*pairs, strict=True))
            weight = self.state[f"{name}.weight"].T
            padded = np.concatenate([weight, np.zeros((int(self.affine), len(weight)))])
            gram = local.T @ local
            mu = self.mu0 * np.sum(gram**2) / np.trace(gram)
            left = np.concatenate([local, np.sqrt(mu) * np.eye(len(padded))])
            right = np.concatenate([full @ weight - local @ padded, np.zeros_like(padded)])
            solved[name] = padded + np.linalg.lstsq(left, right, rcond=None)[0]
            self.residuals[name] = tuple(
                np.sum((full @ weight - local @ w) ** 2) / np.sum((full @ weight) ** 2)
                for w in (padded, solved[name])
            )
        chosen = sorted(solved, key=lambda name: self.residuals[name][1])[: self.count]
        self.absorbed = {name: solved[name] for name in chosen}
