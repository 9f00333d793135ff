"""From attention shares to roles, and how stable those are (Head Forcing, section 1.2)."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from vidcache_jax.cache.head_roles import ANCHOR, LOCAL, MEMORY, ROLES

ALPHA_ANCHOR, TAU_LOCAL = 0.25, 0.2


def classify(
    shares: Float[np.ndarray, "L N 3"],
    alpha_anchor: float = ALPHA_ANCHOR,
    tau_local: float = TAU_LOCAL,
) -> Int[np.ndarray, "L N"]:
    """Number of each head's role (`cache.head_roles`).

    The ``alpha_anchor`` of all heads with the largest share of the sink are anchors; of the others
    the ``tau_local`` of all heads with the largest share of the current chunk are local; the rest
    are memory heads. Of equals, the earlier layer and head.

    Raises:
      ValueError: the two together are more than all heads, or one is negative.
    """
    if min(alpha_anchor, tau_local) < 0 or alpha_anchor + tau_local > 1:
        raise ValueError(
            f"alpha_anchor={alpha_anchor} and tau_local={tau_local} are shares of all heads: they "
            "must be at least 0 and at most 1 together"
        )
    sink, _, current = shares.reshape(-1, 3).T
    anchors = np.argsort(-sink, kind="stable")[: round(alpha_anchor * len(sink))]
    roles = np.full(len(sink), MEMORY, np.int32)
    roles[anchors] = ANCHOR
    # After all others come the anchors, which the count cannot reach.
    order = np.argsort(np.where(roles == ANCHOR, np.inf, -current), kind="stable")
    roles[order[: min(round(tau_local * len(sink)), len(sink) - len(anchors))]] = LOCAL
    return roles.reshape(shares.shape[:2])


def stability(runs: Sequence[Int[np.ndarray, "L N"]]) -> dict[str, float]:
    """S_c of each role: heads that have it in every run, over their mean number.

    1 where all runs agree, among them those in which no head has the role.
    """
    tables = np.stack(runs)
    result = {}
    for number, role in enumerate(ROLES):
        has = tables == number
        mean = has.sum(axis=(1, 2)).mean()
        result[role] = float(has.all(axis=0).sum() / mean) if mean else 1.0
    return result
