"""Slow references of ranking metrics: pair by pair, user by user."""

from __future__ import annotations

import numpy as np


def slow_pairs(p: np.ndarray, y: np.ndarray, w: np.ndarray) -> tuple[float, float]:
    """(weight of pairs won, ties half; of all pairs)."""
    won = pairs = 0.0
    for i in np.flatnonzero(y == 1):
        for j in np.flatnonzero(y == 0):
            pairs += w[i] * w[j]
            won += w[i] * w[j] * (1.0 if p[i] > p[j] else 0.5 if p[i] == p[j] else 0.0)
    return won, pairs


def slow_gauc(p: np.ndarray, y: np.ndarray, w: np.ndarray, users: np.ndarray) -> tuple[float | None, int, float, int]:
    """(GAUC, users with both classes, share of the weight that is others', how many these are). w: above 0 counts."""
    total = kept = weighted = 0.0
    both = others = 0
    for user in set(users.tolist()):
        of = users == user
        won, pairs = slow_pairs(p[of], y[of], w[of])
        total += w[of].sum()
        if pairs:
            both, kept, weighted = both + 1, kept + w[of].sum(), weighted + w[of].sum() * won / pairs
        elif w[of].sum():
            others += 1
    return (weighted / kept if kept else None), both, (1 - kept / total if total else 0.0), others
