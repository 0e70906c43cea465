"""Exact metrics, for evaluation: weighted AUC with ties, GAUC, NE, calibration, over the predictions of all ranks while
each keeps its own. NumPy, no Python per user or row.

The same to the last bit however the predictions are spread over ranks, because nothing depends on the order of a sum:
weights are counted in whole units of 2^-51 of their total (whole numbers exactly, below 2^51), and an addend that is no
whole number of units is rounded to 2^-57 of the total, once. So the mean of a loss over n positions is off by n · 2^-58
at most and √n · 2^-58 usually: 10^9 of them, 1e-13.

What travels: for AUC each rank's distinct scores with their weights, to the ranks that own a range of scores; for GAUC
every position, to the rank that owns its user. A rank holds its own share and what it owns, never all of it.

Shape suffixes: N positions · D distinct scores, or distinct (user, score) pairs · U users.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.hashing import mix
from trainer.metrics import values
from trainer.metrics.exchange import ALONE, Exchange, Int64
from trainer.metrics.values import TaskValues

Floats = npt.NDArray[np.float64]
Array = npt.NDArray[Any]

UNIT_BITS = 51  # of the total weight: sums, and halves of them, are exact in float64
FINE_BITS = 6  # further, for addends that are no whole units: Σ w·ll < 28 · Σ w still fits into an int64
SHARE_BITS = 62  # of numbers that add up to 1
SAMPLES = 32  # scores a rank shows of its own, for each rank there is, to find even ranges
OWNER_SEED = 0x6A0C


@dataclass(frozen=True)
class Gauc:
    """value: None when no user has both classes. users: that have. left_out_share: of all examples' weight, of users
    with one class. one_class_users: how many these are."""

    value: float | None
    users: int
    left_out_share: float
    one_class_users: int = 0

    @property
    def one_class_share(self) -> float:
        """Of all users."""
        return self.one_class_users / max(1, self.users + self.one_class_users)


@dataclass(frozen=True)
class ByGroup:
    """Of each group, in ascending order of its key. pairs won, ties half; whole units of weight of each class."""

    won_U: Floats
    positive_U: Int64
    negative_U: Int64

    @property
    def aucs(self) -> Floats:
        """[U]; NaN where a group has one class."""
        pairs_U = self.positive_U.astype(np.float64) * self.negative_U
        with np.errstate(invalid="ignore"):
            return np.where(pairs_U > 0, self.won_U / pairs_U, np.nan)


def auc(scores_N: Array, labels_N: Array, weights_N: Array | None = None, exchange: Exchange = ALONE) -> float | None:
    """P(positive above negative) + ½ P(tie), pairs weighted by the product of their weights; None without both
    classes. Collective."""
    weights_N = _weights(labels_N, weights_N)
    units_N = _units(weights_N, unit_of(weights_N, exchange))
    return _auc(np.asarray(scores_N), _signed(units_N, labels_N), exchange)


def gauc(
    scores_N: Array, labels_N: Array, users_N: Array, weights_N: Array | None = None, exchange: Exchange = ALONE
) -> Gauc:
    """Mean AUC of users, weighted by their examples' weight (Zhou et al. 2018, DIN, eq. 7). Users with one class have
    no AUC: left out; so are non-finite scores. Collective: a user's positions meet at the rank that a hash says."""
    weights_N = _weights(labels_N, weights_N)
    kept_N = np.isfinite(scores_N) & (weights_N > 0)
    weights_N = weights_N[kept_N]
    signed_N = _signed(_units(weights_N, unit_of(weights_N, exchange)), np.asarray(labels_N)[kept_N])
    users_N = np.asarray(users_N)[kept_N].astype(np.int64, copy=False)
    owner_N = (mix(users_N, OWNER_SEED) % np.uint64(exchange.size)).astype(np.int64)
    users_N, scores_N, signed_N = exchange.to_owners(owner_N, [users_N, np.asarray(scores_N)[kept_N], signed_N])
    found = pairs_by_group(scores_N, signed_N, users_N)
    auc_U, weight_U = found.aucs, found.positive_U + found.negative_U
    both_U = ~np.isnan(auc_U)
    fine = 1 << (61 - UNIT_BITS - 1)
    won = np.rint(weight_U[both_U] * auc_U[both_U] * fine).astype(np.int64)
    summed, kept, total, users, others = exchange.sums(
        [
            int(won.sum()),
            int(weight_U[both_U].sum()),
            int(weight_U.sum()),
            int(both_U.sum()),
            int(np.count_nonzero(~both_U & (weight_U > 0))),
        ]
    )
    value = summed / fine / kept if kept > 0 else None
    return Gauc(value, users, 1 - kept / total if total > 0 else 0.0, others)


def evaluate_task(
    probabilities_N: Array, labels_N: Array, weights_N: Array | None = None, exchange: Exchange = ALONE
) -> TaskValues:
    """Everything but GAUC, over positions of weight > 0. Non-finite predictions are left out and counted.
    Collective."""
    weights_N = _weights(labels_N, weights_N)
    finite_N = np.isfinite(probabilities_N)
    kept_N = finite_N & (weights_N > 0)
    scores, y, w = np.asarray(probabilities_N)[kept_N], np.asarray(labels_N)[kept_N] > 0.5, weights_N[kept_N]
    unit = unit_of(w, exchange)
    units = _units(w, unit)
    loss, prediction = (_fine_sum(units, addend) for addend in (log_losses(scores, y), scores.astype(np.float64)))
    examples, nonfinite, weight, label, loss, prediction = exchange.sums(
        [len(w), int((~finite_N & (weights_N > 0)).sum()), int(units.sum()), int(units[y].sum()), loss, prediction]
    )
    fine_unit = unit / (1 << FINE_BITS)
    return TaskValues(
        examples=examples,
        weight=weight * unit,
        loss=loss * fine_unit / (weight * unit) if weight > 0 else None,
        base_rate=label / weight if weight > 0 else None,
        ne=values.normalized_entropy(loss * fine_unit, label * unit, weight * unit),
        auc=_auc(scores, _signed(units, y), exchange),
        calibration=values.calibration(prediction * fine_unit, label * unit),
        nonfinite=nonfinite,
    )


def log_losses(probabilities_N: Array, labels_N: Array) -> Floats:
    """Of each position. labels: true or false."""
    p_N = np.asarray(probabilities_N, dtype=np.float64).clip(values.CLIP, 1 - values.CLIP)
    losses_N: Floats = -np.where(labels_N, np.log(p_N), np.log1p(-p_N))
    return losses_N


def unit_of(weights_N: Floats, exchange: Exchange = ALONE) -> float:
    """What weights are counted in: a power of two, 2^-51 of their total over all ranks. Collective."""
    count = exchange.sums([len(weights_N)])[0]
    largest = exchange.largest(float(weights_N.max(initial=0.0)))
    if largest <= 0:
        return 1.0
    # Found in two steps, neither of which depends on an order: the total may be far below count · largest.
    rough = math.ldexp(1.0, math.frexp(largest * count)[1] - 61)
    total = exchange.sums([int(np.rint(weights_N / rough).astype(np.int64).sum())])[0] * rough
    return math.ldexp(1.0, math.frexp(total)[1] - UNIT_BITS)


def pairs_by_group(scores_N: Array, signed_N: Int64, groups_N: Array) -> ByGroup:
    """signed: units of weight, those of negatives below 0."""
    if not len(scores_N):
        return ByGroup(np.zeros(0), np.zeros(0, np.int64), np.zeros(0, np.int64))
    order = np.lexsort((scores_N, groups_N))
    scores, groups, signed = scores_N[order], groups_N[order], signed_N[order]
    new_group = np.r_[True, groups[1:] != groups[:-1]]
    starts_D = np.flatnonzero(new_group | np.r_[True, scores[1:] != scores[:-1]])
    positive_D, negative_D = _classes(signed, starts_D)
    starts_U = np.flatnonzero(new_group[starts_D])
    positive_U, negative_U = np.add.reduceat(positive_D, starts_U), np.add.reduceat(negative_D, starts_U)
    # negatives strictly below, inside the group: a running sum, less what earlier groups brought
    below_D = np.cumsum(negative_D) - negative_D
    below_D -= np.repeat(below_D[starts_U], np.diff(np.r_[starts_U, len(starts_D)]))
    won_U = np.add.reduceat(positive_D * (below_D + 0.5 * negative_D), starts_U)
    return ByGroup(won_U, positive_U, negative_U)


def _auc(scores_N: Array, signed_N: Int64, exchange: Exchange) -> float | None:
    """Collective. Ranges of scores ascend with the ranks that own them, and equal scores meet at one."""
    scores_D, positive_D, negative_D = _distinct(scores_N, np.maximum(signed_N, 0), np.maximum(-signed_N, 0))
    if exchange.size > 1:
        owner_D = np.searchsorted(_borders(scores_D, exchange), scores_D, side="right").astype(np.int64)
        scores_D, positive_D, negative_D = _distinct(*exchange.to_owners(owner_D, [scores_D, positive_D, negative_D]))
    own = np.array([positive_D.sum(), negative_D.sum()], np.int64)
    of_ranks = exchange.rows(own)
    positive, negative = (int(total) for total in of_ranks.sum(axis=0))
    if not positive or not negative:
        return None
    below_D = np.cumsum(negative_D) - negative_D + of_ranks[: exchange.rank, 1].sum()
    shares_D = (positive_D / positive) * ((below_D + 0.5 * negative_D) / negative)
    return exchange.sums([int(np.rint(np.ldexp(shares_D, SHARE_BITS)).astype(np.int64).sum())])[0] / 2.0**SHARE_BITS


def _borders(scores_D: Array, exchange: Exchange) -> Floats:
    """Scores that cut all ranks' distinct scores into ranges of about one size: [ranks − 1], ascending. What a range
    is affects nothing but how much a rank holds."""
    sample = np.full(SAMPLES * exchange.size + 1, np.nan)
    sample[-1] = len(scores_D)
    if len(scores_D):
        sample[:-1] = scores_D[np.linspace(0, len(scores_D) - 1, len(sample) - 1).astype(np.int64)]
    of_ranks = exchange.rows(sample)
    shown, counts = of_ranks[:, :-1], np.repeat(of_ranks[:, -1:], len(sample) - 1, axis=1)
    there = ~np.isnan(shown)
    if not there.any():
        return np.zeros(exchange.size - 1)
    order = np.argsort(shown[there], kind="stable")
    upto = np.cumsum(counts[there][order])
    cuts = np.searchsorted(upto, upto[-1] * np.arange(1, exchange.size) / exchange.size)
    borders: Floats = shown[there][order][cuts]
    return borders


def _distinct(scores_N: Array, positive_N: Int64, negative_N: Int64) -> tuple[Array, Int64, Int64]:
    """Scores ascending, each once, with its units of both classes."""
    if not len(scores_N):
        return scores_N, positive_N, negative_N
    order = np.argsort(scores_N)
    scores = scores_N[order]
    starts_D = np.flatnonzero(np.r_[True, scores[1:] != scores[:-1]])
    return scores[starts_D], np.add.reduceat(positive_N[order], starts_D), np.add.reduceat(negative_N[order], starts_D)


def _classes(signed: Int64, starts: Int64) -> tuple[Int64, Int64]:
    return np.add.reduceat(np.maximum(signed, 0), starts), np.add.reduceat(np.maximum(-signed, 0), starts)


def _weights(labels_N: Array, weights_N: Array | None) -> Floats:
    return np.ones(len(labels_N)) if weights_N is None else np.asarray(weights_N, dtype=np.float64)


def _units(weights_N: Floats, unit: float) -> Int64:
    return np.rint(weights_N / unit).astype(np.int64)


def _signed(units_N: Int64, labels_N: Array) -> Int64:
    return np.where(np.asarray(labels_N) > 0.5, units_N, -units_N)


def _fine_sum(units_N: Int64, addends_N: Floats) -> int:
    """Σ units · addends, each rounded to a whole number of fine units."""
    return int(np.rint(units_N * addends_N * (1 << FINE_BITS)).astype(np.int64).sum())
