"""An independent account of Head Forcing; shares no code with the package.

Every frame ever made is kept in a list; what a head sees is put together anew for each chunk.
Loops over layers, heads and tokens, keys as complex pairs, float64, one video at a time.
"""

import itertools
import typing

import numpy as np

from tests.cache.oracle import THETA, as_complex


class Frame(typing.NamedTuple):
    """One frame as one head knows it; a summary's tokens come from several places."""

    k: np.ndarray
    """[tokens, pairs], complex and un-rotated."""
    v: np.ndarray
    places: list[int]


class Entry(typing.NamedTuple):
    number: int
    heads: dict[tuple[int, int], Frame]
    """By (layer, head), memory heads only."""


class HeadOracle:
    def __init__(self, grid, roles, policy, prompt, token_scores=None):
        """``prompt``: mean prompt key [heads, H]; ``token_scores(candidate, layer)`` replaces r."""
        self.grid, self.roles, self.policy = grid, roles, policy
        self.prompt, self.token_scores = as_complex(prompt), token_scores
        self.tokens = grid[0] * grid[1]
        self.video: list[dict[tuple[int, int], Frame]] = []
        self.episodic: list[Entry] = []
        self.has_summary = False
        self.admitted, self.merged = [], []
        layers, heads = range(len(roles)), range(len(roles[0]))
        self.memory = [h for h in itertools.product(layers, heads) if self.role(*h) == "memory"]

    def role(self, layer, head):
        return self.roles[layer][head]

    def chunk(self, q, k, v, num_frames):
        """Attention [layers, heads, tokens, H] of the next chunk, before the memory's update."""
        first = len(self.video)
        for i in range(num_frames):
            own = slice(i * self.tokens, (i + 1) * self.tokens)
            self.video.append({
                (layer, head): Frame(
                    as_complex(k[layer, head, own]), np.asarray(v[layer, head, own], np.float64),
                    list(range(self.tokens)),
                )
                for layer in range(len(self.roles)) for head in range(len(self.roles[0]))
            })  # fmt: skip
        out = np.zeros(q.shape)
        for layer, head in self.video[0]:
            out[layer, head] = self._attend(as_complex(q[layer, head]), layer, head, first)
        return out

    def positions(self, layer, head, first):
        """Frame positions of what a head sees of frames ``first`` ... and before."""
        seen = self._seen(layer, head, first)
        return [n if self.policy.rope == "global" else i for i, (n, _) in enumerate(seen)]

    def _seen(self, layer, head, first):
        """[(frame number, frame)] in the paper's order."""
        policy, role = self.policy, self.role(layer, head)
        numbers = set(range(first, len(self.video)))
        if role == "memory":
            numbers |= set(range(max(0, first - policy.fast_size), first))
        else:
            numbers |= set(range(max(0, first - policy.neighbour_size), first))
        if role == "anchor":
            numbers |= set(range(min(policy.anchor_size, first)))
        entries = self.episodic if role == "memory" else []
        past = [(e.number, e.heads[layer, head]) for e in entries]
        return past + [(n, self.video[n][layer, head]) for n in sorted(numbers)]

    def _attend(self, q, layer, head, first):
        seen = self._seen(layer, head, first)
        places = self.positions(layer, head, first)
        keys = [self._turn(f.k, p, f.places) for p, (_, f) in zip(places, seen, strict=True)]
        keys, values = np.concatenate(keys), np.concatenate([f.v for _, f in seen])
        own = places[len(places) - (len(self.video) - first) :]
        queries = np.concatenate([
            self._turn(part, place, range(self.tokens))
            for place, part in zip(own, np.split(q, len(own)), strict=True)
        ])  # fmt: skip
        logits = np.einsum("tp,sp->ts", queries, keys.conj()).real / np.sqrt(2 * q.shape[-1])
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return weights / weights.sum(axis=-1, keepdims=True) @ values

    def _turn(self, x, frame, places):
        count = x.shape[-1]
        turned = x.copy()
        for token, place in enumerate(places):
            start = 0
            for index, n in ((frame, count - 2 * (count // 3)), (place // self.grid[1], count // 3),
                             (place % self.grid[1], count // 3)):  # fmt: skip
                for i in range(n):
                    turned[token, start + i] *= np.exp(1j * index * THETA ** (-i / n))
                start += n
        return turned

    def _judged(self, frame):
        raw = self.policy.score_on == "raw"
        return frame.k if raw else self._turn(frame.k, 0, frame.places)

    def update(self, num_frames):
        """After a chunk: the candidate for episodic memory, if one is due."""
        policy = self.policy
        block = len(self.video) // num_frames
        left = block - -(-policy.fast_size // num_frames)
        if block % policy.update_interval or left < 1 or not self.memory:
            return
        number = (left - 1) * num_frames
        candidate = Entry(number, {h: self.video[number][h] for h in self.memory})
        novelty = max((self._alike(candidate, e) for e in self.episodic), default=-2.0)
        if policy.admission == "never":
            return
        if policy.admission == "novelty" and novelty >= policy.tau_novel:
            return
        self.admitted.append(number)
        if len(self.episodic) == policy.episodic_size:
            if policy.overflow == "fifo":
                del self.episodic[0]
            else:
                self._make_room(number)
        self.episodic.append(candidate)

    def _alike(self, one, two):
        def cosine(a, b):
            a, b = a.mean(axis=0), b.mean(axis=0)
            return (a * b.conj()).sum().real / (np.linalg.norm(a) * np.linalg.norm(b))

        each = [cosine(self._judged(one.heads[h]), self._judged(two.heads[h])) for h in self.memory]
        return float(np.mean(each))

    def _make_room(self, candidate):
        entries = self.episodic
        if not self.has_summary:
            pairs = itertools.combinations(range(len(entries)), 2)
            i, j = max(pairs, key=lambda p: self._alike(entries[p[0]], entries[p[1]]))
        else:

            def redundancy(j):
                near = [n for n in (j - 1, j + 1) if 1 <= n < len(entries)]
                return np.mean([self._alike(entries[j], entries[n]) for n in near] or [0.0])

            i, j = 0, max(range(1, len(entries)), key=redundancy)
        self.merged.append((entries[i].number, entries[j].number))
        heads = {}
        for layer in range(len(self.roles)):
            own = [h for h in self.memory if h[0] == layer]
            if not own:
                continue
            if self.token_scores:
                score = self.token_scores(candidate, layer)
            else:
                score = np.mean([self._prompted(entries[i], entries[j], h) for h in own], axis=0)
            ranked = sorted(range(2 * self.tokens), key=lambda t: (-score[t], t))
            kept = sorted(ranked[: self.tokens])
            for h in own:
                a, b = entries[i].heads[h], entries[j].heads[h]
                k, v = np.concatenate([a.k, b.k]), np.concatenate([a.v, b.v])
                heads[h] = Frame(k[kept], v[kept], [(a.places + b.places)[t] for t in kept])
        self.episodic = [Entry(entries[i].number, heads)] + [
            e for n, e in enumerate(entries) if n not in (i, j)
        ]
        self.has_summary = True

    def _prompted(self, one, two, head):
        keys = np.concatenate([self._judged(one.heads[head]), self._judged(two.heads[head])])
        prompt = self.prompt[head[1]]
        norms = np.linalg.norm(keys, axis=1) * np.linalg.norm(prompt)
        return (keys @ prompt.conj()).real / norms
