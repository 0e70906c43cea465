"""The inner loops of the bootstrap: metrics under other weights of users. Every sum in one order, so that models that
are equal stay equal to the bit."""

from __future__ import annotations

from typing import Any

from numba import types

from pipelines.compiled import kernel

F64 = types.Array(types.float64, 1, "C", readonly=True)
I32 = types.Array(types.int32, 1, "C", readonly=True)
F64_US = types.Array(types.float64, 2, "C", readonly=True)
BOOL = types.Array(types.boolean, 1, "C", readonly=True)


@kernel(F64, I32, F64, BOOL, returns=types.float64)
def resampled_auc(times_U: Any, user_N: Any, signed_N: Any, last_N: Any) -> Any:
    """Of positions that are sorted by score. times: how often each user was drawn. signed: weights, those of negatives
    below 0. last: positions that are the last of their score. NaN without both classes."""
    won = below = positives = positive = negative = 0.0
    for n in range(len(user_N)):
        weight = signed_N[n] * times_U[user_N[n]]
        if weight > 0.0:
            positive += weight
        else:
            negative -= weight
        if last_N[n]:
            won += positive * (below + 0.5 * negative)
            below += negative
            positives += positive
            positive = negative = 0.0
    return won / (positives * below)


@kernel(F64, F64_US, types.float64[::1])
def resampled_sums(times_U: Any, sums_US: Any, found_S: Any) -> None:
    """Σ times · sums, added to found."""
    for u in range(len(times_U)):
        if times_U[u] > 0.0:
            for s in range(len(found_S)):
                found_S[s] += times_U[u] * sums_US[u, s]
