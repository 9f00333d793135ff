"""Self-Forcing's chunk-by-chunk sampler as plain loops over lists, in float64 NumPy.

Shares no code with the package, schedule arithmetic included.
"""

import numpy as np


def window_layout(past, start, end, *, window=None, sink=0, relative=False):
    """What the chunk of frames [start, end) sees, and at which RoPE positions.

    Returns:
      {frame: position} of the visible frames of ``past`` and of the chunk itself.
    """
    if window is not None:
        past = [f for f in past if f < sink or f >= end - (window - sink)]
    frames = sorted(past) + list(range(start, end))
    return dict(zip(frames, range(len(frames)) if relative else frames, strict=True))


def rollout(oracle, noise, renoise, text, *, steps, shift, context, chunk, **window):
    """One video.

    Args:
      noise: [F, Y, X, C]; renoise: [chunks, steps - 1, chunk, Y, X, C].
      steps: before warping; context: timestep of the commit passes.
      window: see `window_layout`.

    Returns:
      latents [F, Y, X, C], flow_first [chunks, chunk, Y, X, C], and what every layer has ever
      committed: a list over layers of {frame: (k, v)}.
    """
    warped = [1000 * shift * (s / 1000) / (1 + (shift - 1) * (s / 1000)) for s in steps]
    stored = [{} for _ in range(oracle.config.num_layers)]
    latents, flow_first = [], []
    for index, start in enumerate(range(0, len(noise), chunk)):
        frames = list(range(start, start + chunk))
        layout = window_layout(sorted(stored[0]), start, start + chunk, **window)
        past = [
            [(layout[f], *layer[f]) for f in layout if f < start]
            for layer in stored
        ]  # fmt: skip

        def run(x, t, frames=frames, layout=layout, past=past):
            positions = [layout[f] for f in frames]
            return oracle.forward(x, [t] * chunk, text, positions, past)

        x = np.asarray(noise[start : start + chunk], np.float64)
        for step, t in enumerate(warped):
            flow, _ = run(x, t)
            clean = x - t / 1000 * flow
            if step == 0:
                flow_first.append(flow)
            if step + 1 < len(warped):
                sigma = warped[step + 1] / 1000
                x = (1 - sigma) * clean + sigma * renoise[index][step]
        latents.append(clean)
        _, own = run(clean, context)
        for layer, (k, v) in zip(stored, own, strict=True):
            layer.update({f: (k[i], v[i]) for i, f in enumerate(frames)})
    return np.concatenate(latents), np.stack(flow_first), stored
