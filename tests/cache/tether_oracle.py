"""An independent account of TetherCache; shares no code with the package.

Lists of frames, every query multiplied with every key, statistics over the tokens themselves
(nothing kept from chunk to chunk), loops over pairs of candidates, float64, one video at a time.
"""

import math

import numpy as np

from tests.cache.oracle import Frame, Oracle, as_complex


class TetherOracle(Oracle):
    def __init__(self, grid, sink, memory, recent, alpha, tau, temperature):
        super().__init__(grid, relative=True)
        self.sink_size, self.memory_size, self.recent_size = sink, memory, recent
        self.alpha, self.tau, self.temperature = alpha, tau, temperature

    def chunk(self, q, k, v, num_frames):
        q, k, v = as_complex(q), as_complex(k), np.asarray(v, np.float64)
        first = self.buffer[-1].number + 1 if self.buffer else 0
        own = [
            Frame(first + i, *frame)
            for i, frame in enumerate(
                zip(np.split(k, num_frames, axis=1), np.split(v, num_frames, axis=1), strict=True)
            )
        ]
        sink = [f for f in self.buffer if f.number < self.sink_size]
        rest = self.buffer[len(sink) :]
        stay = [f for f in rest if f.number >= first + num_frames - self.recent_size]
        leave = [f for f in rest[: len(rest) - len(stay)] if f.number >= first - self.recent_size]
        memory = rest[: len(rest) - len(stay) - len(leave)]
        if len(memory) + len(leave) <= self.memory_size:
            # Warm-up: whoever leaves the recent frames finds a place.
            self.buffer = [*self.buffer, *own]
            denoised = committed = self._attend(q, num_frames)
            return denoised, committed
        self.buffer = [*sink, *memory, *stay, *own]
        denoised = self._attend(q, num_frames)
        winners = self._recall(q, memory + leave)
        trusted = sink + memory
        admitted = [self._tamed(f, trusted) if f in leave else f for f in winners]
        self.buffer = [*sink, *admitted, *stay, *own]
        return denoised, self._attend(q, num_frames)

    def _recall(self, q, candidates):
        heads, queries, pairs = q.shape
        logits = []
        for frame in candidates:
            every = np.einsum("nqp,nkp->nqk", q, frame.k.conj()).real / math.sqrt(2 * pairs)
            logits.append(every.mean() / self.temperature)
        mass = np.exp(np.array(logits) - max(logits))
        mass = mass / mass.sum()
        numbers = [f.number for f in candidates]
        sigma = max(1.0, 0.5 * (max(numbers) - min(numbers) + 1))
        scores = []
        for i, here in enumerate(numbers):
            redundancy = [
                math.exp(-abs(here - there) / sigma) * mass[j]
                for j, there in enumerate(numbers)
                if j != i
            ] or [0.0]
            scores.append(mass[i] + self.alpha * max(0.0, 1.0 - max(redundancy)))
        ranked = sorted(zip(scores, numbers, strict=True), key=lambda pair: (-pair[0], pair[1]))
        kept = {number for _, number in ranked[: self.memory_size]}
        return [f for f in candidates if f.number in kept]

    def _tamed(self, frame, trusted):
        def tamed(x, pool):
            pool = np.concatenate(pool, axis=1)
            mean, std = (m[:, None] for m in (pool.mean(axis=1), pool.std(axis=1)))
            own_mean, own_std = (m[:, None] for m in (x.mean(axis=1), x.std(axis=1)))
            moved = std * (x - own_mean) / own_std + mean
            return (1 - self.tau) * x + self.tau * moved

        if not trusted:
            return frame
        k = tamed(as_real(frame.k), [as_real(f.k) for f in trusted])
        return frame._replace(k=as_complex(k), v=tamed(frame.v, [f.v for f in trusted]))


def as_real(pairs):
    """Inverse of `as_complex`."""
    return np.stack([pairs.real, pairs.imag], axis=-1).reshape(*pairs.shape[:-1], -1)
