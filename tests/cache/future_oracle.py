"""An independent account of Future Forcing; shares no code with the package.

A Python list of tokens for every head, all of a chunk's queries against all of its keys in one
dense matrix, float64, one video at a time.
"""

import dataclasses

import numpy as np

from tests.cache.oracle import THETA, as_complex


@dataclasses.dataclass
class Token:
    frame: int
    place: int
    position: int
    """Frame at which the key is rotated."""
    k: np.ndarray
    """[pairs], complex and un-rotated."""
    v: np.ndarray
    history: float = 0.0


class FutureOracle:
    def __init__(self, policy, grid, num_heads):
        self.policy, self.grid = policy, grid
        self.per_frame = grid[0] * grid[1]
        self.heads: list[list[Token]] = [[] for _ in range(num_heads)]
        self.queries: list[np.ndarray] = []
        """Of every frame so far, [heads, tokens, pairs]."""
        self.num_merged: list[int] = []
        self.num_dropped: list[int] = []
        """Of each head's last eviction."""

    def chunk(self, q, k, v, num_frames):
        """(denoise attention, commit attention) of the next chunk, each [heads, tokens, H]."""
        start, count = len(self.queries), num_frames * self.per_frame
        q, k, v = as_complex(q), as_complex(k), np.asarray(v, np.float64)
        self.queries += np.split(q, num_frames, axis=1)
        out, scores = [], []
        for n, tokens in enumerate(self.heads):
            last = max((t.position for t in tokens), default=-1)
            first = start if self.policy.rope_remap == "none" else last + 1
            for i in range(count):
                frame, place = divmod(i, self.per_frame)
                tokens.append(Token(start + frame, place, first + frame, k[n, i], v[n, i]))
            attention = self._attention(tokens, q[n], tokens[-count:])
            out.append(attention @ np.array([t.v for t in tokens]))
            for token, received in zip(tokens, attention.mean(axis=0), strict=True):
                token.history += received
            scores.append(self._score(n, tokens, start, num_frames))
        if self.policy.head_mode == "shared":
            mean = np.mean([score for score, _, _ in scores], axis=0)
            scores = [(mean, future, profile) for _, future, profile in scores]
        self.num_merged, self.num_dropped = [], []
        for n, (score, future, profile) in enumerate(scores):
            self.heads[n] = self._evicted(
                self.heads[n], score, future, profile, start + num_frames, num_frames
            )
        return np.array(out), np.array(out)

    def _attention(self, tokens, q, places):
        """Softmax of queries at the places of some tokens over all tokens: [queries, tokens]."""
        keys = np.array([self._turn(t.k, t.position, t.place) for t in tokens])
        q = np.array([self._turn(x, t.position, t.place) for x, t in zip(q, places, strict=True)])
        return self._softmax(np.real(q @ keys.conj().T) / np.sqrt(2 * q.shape[-1]))

    def _softmax(self, z):
        weights = np.exp(z - z.max(axis=-1, keepdims=True))
        return weights / weights.sum(axis=-1, keepdims=True)

    def _turn(self, pairs, frame, place):
        count = len(pairs)
        row, column = divmod(place, self.grid[1])
        angles = [
            index * THETA ** (-i / n)
            for index, n in (
                (frame, count - 2 * (count // 3)), (row, count // 3), (column, count // 3)
            )
            for i in range(n)
        ]  # fmt: skip
        return pairs * np.exp(1j * np.array(angles))

    def _score(self, n, tokens, start, num_frames):
        """(score, a [delta, tokens], profile [delta, tokens])."""
        policy = self.policy
        mean = np.mean([q[n] for q in self.queries[-policy.query_frames :]], axis=0)
        last = max(t.position for t in tokens)
        if policy.rope_remap == "none":
            last = start + num_frames - 1
        keys = np.array([self._turn(t.k, t.position, t.place) for t in tokens])
        future, profile = [], []
        for delta in range(1, policy.delta_max + 1):
            proxies = np.array([
                self._turn(mean[place], last + delta, place)
                for place in range(0, self.per_frame, policy.proxy_token_stride)
            ])  # fmt: skip
            z = np.real(proxies @ keys.conj().T) / np.sqrt(2 * keys.shape[-1])
            future.append(self._softmax(z).mean(axis=0))
            profile.append(np.real(proxies.mean(axis=0) @ keys.conj().T))
        chunks = start // num_frames + 1
        ages = [
            chunks if policy.history_norm == "t" else chunks - t.frame // num_frames for t in tokens
        ]
        history = np.array([t.history for t in tokens]) / ages
        score = policy.lam * np.mean(future, axis=0) + (1 - policy.lam) * history
        if policy.score == "sink_fifo":
            score = np.array([t.frame for t in tokens])
        return (
            score,
            np.array(future),
            np.array(future if policy.profile == "attention" else profile),
        )

    def _evicted(self, tokens, score, future, profile, end, num_frames):
        policy, room = self.policy, (self.policy.budget_frames - num_frames) * self.per_frame
        protected = lambda t: (
            t.frame < policy.protect_sink_frames or t.frame >= end - policy.protect_recent_frames
        )
        ranked = sorted(
            range(len(tokens)),
            key=lambda i: (not protected(tokens[i]), -score[i], tokens[i].frame, tokens[i].place),
        )
        kept = sorted(ranked[:room], key=lambda i: (tokens[i].frame, tokens[i].place))
        groups = {i: [i] for i in kept}
        norm = np.linalg.norm(profile, axis=0)
        for j in ranked[room:] if policy.merge else []:
            cosines = [
                profile[:, i] @ profile[:, j] / (norm[i] * norm[j]) if norm[i] * norm[j] else 0.0
                for i in kept
            ]
            best = int(np.argmax(cosines))
            if cosines[best] >= policy.tau:
                groups[kept[best]].append(j)
        self.num_merged.append(sum(map(len, groups.values())) - len(kept))
        self.num_dropped.append(len(tokens) - len(kept) - self.num_merged[-1])
        values = [
            np.mean([
                a[members] @ np.array([tokens[i].v for i in members]) / a[members].sum()
                for a in future
            ], axis=0)
            for members in groups.values()
        ]  # fmt: skip
        survivors, frames = [tokens[i] for i in kept], sorted({tokens[i].frame for i in kept})
        for p, (token, value) in enumerate(zip(survivors, values, strict=True)):
            token.v = value
            if policy.rope_remap == "slot":
                token.position = p // self.per_frame
            elif policy.rope_remap == "frame_rank":
                token.position = frames.index(token.frame)
        return survivors
