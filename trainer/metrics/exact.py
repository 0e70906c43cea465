"""Exact metrics over gathered arrays, for evaluation: weighted AUC with ties, GAUC, NE, calibration. NumPy, no Python
per user or row.

Shape suffixes: N examples (positions with weight > 0) · D distinct (user, score) pairs · U users.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.metrics import values
from trainer.metrics.values import TaskValues

Floats = npt.NDArray[np.float64]
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Gauc:
    """value: None when no user has both classes. users: that have. left_out_share: of all examples' weight, of users
    with one class."""

    value: float | None
    users: int
    left_out_share: float


def auc(scores_N: Array, labels_N: Array, weights_N: Array | None = None) -> float | None:
    """P(positive above negative) + ½ P(tie), pairs weighted by the product of their weights; None without both
    classes."""
    one_user_N = np.zeros(len(scores_N), dtype=np.int64)
    won, pairs, _ = _pairs_by_group(scores_N, labels_N, _weights(labels_N, weights_N), one_user_N)
    return float(won[0] / pairs[0]) if len(pairs) and pairs[0] > 0 else None


def gauc(scores_N: Array, labels_N: Array, users_N: Array, weights_N: Array | None = None) -> Gauc:
    """Mean AUC of users, weighted by their examples' weight (Zhou et al. 2018, DIN, eq. 7). Users with one class have
    no AUC: left out; so are non-finite scores."""
    kept_N = np.isfinite(scores_N)
    weights_N = _weights(labels_N, weights_N)
    won_U, pairs_U, weight_U = _pairs_by_group(scores_N[kept_N], labels_N[kept_N], weights_N[kept_N], users_N[kept_N])
    both_U = pairs_U > 0
    kept, total = float(weight_U[both_U].sum()), float(weight_U.sum())
    value = float((weight_U[both_U] * won_U[both_U] / pairs_U[both_U]).sum() / kept) if kept > 0 else None
    return Gauc(value, int(both_U.sum()), 1 - kept / total if total > 0 else 0.0)


def evaluate_task(probabilities_N: Array, labels_N: Array, weights_N: Array | None = None) -> TaskValues:
    """Everything but GAUC, over positions of weight > 0. Non-finite predictions are left out and counted."""
    weights_N = _weights(labels_N, weights_N)
    finite_N = np.isfinite(probabilities_N)
    p, y, w = (array[finite_N & (weights_N > 0)].astype(np.float64) for array in (probabilities_N, labels_N, weights_N))
    clipped = p.clip(values.CLIP, 1 - values.CLIP)
    loss = float(-(w * (y * np.log(clipped) + (1 - y) * np.log1p(-clipped))).sum())
    weight, label = float(w.sum()), float((w * y).sum())
    return TaskValues(
        examples=len(p),
        weight=weight,
        loss=loss / weight if weight > 0 else None,
        base_rate=label / weight if weight > 0 else None,
        ne=values.normalized_entropy(loss, label, weight),
        auc=auc(p, y, w),
        calibration=values.calibration(float((w * p).sum()), label),
        nonfinite=int((~finite_N & (weights_N > 0)).sum()),
    )


def _weights(labels_N: Array, weights_N: Array | None) -> Floats:
    return np.ones(len(labels_N)) if weights_N is None else np.asarray(weights_N, dtype=np.float64)


def _pairs_by_group(
    scores_N: Array, labels_N: Array, weights_N: Floats, groups_N: Array
) -> tuple[Floats, Floats, Floats]:
    """Per group, in ascending order: weight of won pairs (ties half), of all pairs, and of all examples."""
    if not len(scores_N):
        return np.zeros(0), np.zeros(0), np.zeros(0)
    order = np.lexsort((scores_N, groups_N))
    scores, groups, weights = np.asarray(scores_N)[order], np.asarray(groups_N)[order], weights_N[order]
    positive = weights * (np.asarray(labels_N)[order] > 0.5)
    new_group = np.r_[True, groups[1:] != groups[:-1]]
    starts_D = np.flatnonzero(new_group | np.r_[True, scores[1:] != scores[:-1]])
    positive_D = np.add.reduceat(positive, starts_D)
    negative_D = np.add.reduceat(weights - positive, starts_D)
    starts_U = np.flatnonzero(new_group[starts_D])
    positive_U, negative_U = np.add.reduceat(positive_D, starts_U), np.add.reduceat(negative_D, starts_U)
    # negatives strictly below, inside the group: a running sum, less what earlier groups brought
    below_D = np.cumsum(negative_D) - negative_D
    below_D -= np.repeat(below_D[starts_U], np.diff(np.r_[starts_U, len(starts_D)]))
    won_U = np.add.reduceat(positive_D * (below_D + 0.5 * negative_D), starts_U)
    return won_U, positive_U * negative_U, positive_U + negative_U
