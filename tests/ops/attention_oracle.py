"""Attention with residuals by loops, in float64."""

import numpy as np


def oracle(q, k, v, visible=None, bias=None):
    """(out, max, denominator); ``visible`` and ``bias`` broadcast to [B, N, T, S]."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    batch, num_heads, num_queries, size = q.shape
    shape = (batch, num_heads, num_queries, k.shape[2])
    visible = np.broadcast_to(True if visible is None else visible, shape)
    bias = np.broadcast_to(0.0 if bias is None else bias, shape)
    out, top, denominator = np.zeros(q.shape), np.zeros(shape[:3]), np.zeros(shape[:3])
    for index in np.ndindex(*shape[:3]):
        seen = visible[index]
        if seen.any():
            z = k[index[:2]][seen] @ q[index] / np.sqrt(size) + bias[index][seen]
            top[index] = z.max()
            denominator[index] = np.exp(z - z.max()).sum()
            out[index] = np.exp(z - z.max()) @ v[index[:2]][seen] / denominator[index]
    return out, top, denominator
