"""How sure a difference between two models is: both on the same positions, users drawn anew many times.

The Poisson bootstrap (Chamandy et al. 2012, "Estimating Uncertainty for Massive Data Streams"): in each resample every
user counts a Poisson(1) number of times, with all its positions, because a user's positions are no independent draws.
Both models see the same draw, so what is common to them cancels. An interval is that between percentiles of the
resampled differences; it says how far the difference would move with other users, not with another training run.

Shape suffixes: N positions of one task · U users · B resamples.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.metrics import exact, values
from trainer.metrics.exact import Floats

METRICS = ("ne", "auc", "gauc", "calibration")
LESS_IS_BETTER = ("ne", "calibration")  # of calibration: its distance from 1
LEVEL = 0.95
FEWEST = 0.5  # of the resamples must be defined, or there is no interval
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Pair:
    """The same positions, predicted by two models. labels: true or false. users: 0 … users − 1. weights > 0."""

    a_N: npt.NDArray[np.float32]
    b_N: npt.NDArray[np.float32]
    labels_N: Bools
    weights_N: Floats
    users_N: npt.NDArray[np.int32]

    def where(self, chosen_N: Bools) -> Pair:
        """Some of them, users numbered anew."""
        users = np.unique(self.users_N[chosen_N], return_inverse=True)[1].astype(np.int32)
        return Pair(self.a_N[chosen_N], self.b_N[chosen_N], self.labels_N[chosen_N], self.weights_N[chosen_N], users)

    @property
    def users(self) -> int:
        """How many."""
        return int(self.users_N.max(initial=-1)) + 1


@dataclass(frozen=True)
class Difference:
    """One metric of both models. difference: b − a, in [low, high] at LEVEL. gain: how much better b is (worse, if
    below 0), in [gain_low, gain_high]: the difference, turned round where less is better; of calibration
    |ln calibration| of a − that of b. None: not defined."""

    a: float | None
    b: float | None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    gain: float | None = None
    gain_low: float | None = None
    gain_high: float | None = None

    @property
    def better(self) -> str:
        """ "a" or "b" where the interval says so, else ""."""
        if self.gain_low is None or self.gain_high is None:
            return ""
        return "b" if self.gain_low > 0 else "a" if self.gain_high < 0 else ""


def compare(pair: Pair, resamples: int, seed: int = 0) -> dict[str, Difference]:
    """{metric: its difference}. The same for the same seed, on any number of threads."""
    points = [_points(pair, scores_N) for scores_N in (pair.a_N, pair.b_N)]
    drawn = resample(pair, resamples, seed)
    found = {}
    for metric in METRICS:
        a, b = (of[metric] for of in points)
        if a is None or b is None:
            found[metric] = Difference(a, b)
            continue
        a_B, b_B = drawn[metric]
        gain, gain_B = _gain(metric, np.array(a), np.array(b)), _gain(metric, a_B, b_B)
        with np.errstate(invalid="ignore"):  # a resample without positives has an infinite calibration
            low, high = _interval(b_B - a_B)
        found[metric] = Difference(a, b, b - a, low, high, float(gain), *_interval(gain_B))
    return found


def resample(pair: Pair, resamples: int, seed: int) -> Mapping[str, tuple[Floats, Floats]]:
    """{metric: its values [B] of both models}; NaN where a resample has one class."""
    sums_US = _user_sums(pair)
    orders = [_sorted(pair, scores_N) for scores_N in (pair.a_N, pair.b_N)]
    draw = partial(_draw, users=pair.users, seed=seed, sums_US=sums_US, orders=orders)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # the kernel and numpy let go of the GIL
        drawn = list(pool.map(draw, range(resamples)))
    sums_BS = np.array([sums for sums, _ in drawn]).reshape(resamples, -1)
    auc_B2 = np.array([aucs for _, aucs in drawn]).reshape(resamples, 2)
    weight, label, ranked = sums_BS[:, 0], sums_BS[:, 1], sums_BS[:, 2]
    found: dict[str, tuple[Floats, Floats]] = {"auc": (auc_B2[:, 0], auc_B2[:, 1])}
    with np.errstate(invalid="ignore", divide="ignore"):
        rate = label / weight
        floor = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))
        for metric, first, below in (("ne", 3, weight * floor), ("calibration", 5, label), ("gauc", 7, ranked)):
            found[metric] = (sums_BS[:, first] / below, sums_BS[:, first + 1] / below)
    return found


def _draw(
    number: int, users: int, seed: int, sums_US: Floats, orders: list[tuple[Any, ...]]
) -> tuple[Floats, list[float]]:
    from trainer.metrics.bootstrap_kernel import resampled_auc, resampled_sums  # noqa: PLC0415 - numba is imported where it runs

    times_U = np.random.default_rng([seed, number]).poisson(1.0, users).astype(np.float64)
    sums_S = np.zeros(sums_US.shape[1])
    resampled_sums(times_U, sums_US, sums_S)
    return sums_S, [resampled_auc(times_U, *order) for order in orders]


def _points(pair: Pair, scores_N: npt.NDArray[np.float32]) -> dict[str, float | None]:
    """As `evaluate` has them."""
    found = exact.evaluate_task(scores_N, pair.labels_N, pair.weights_N)
    by_user = exact.gauc(scores_N, pair.labels_N, pair.users_N, pair.weights_N)
    return {"ne": found.ne, "auc": found.auc, "gauc": by_user.value, "calibration": found.calibration}


def _user_sums(pair: Pair) -> Floats:
    """Of each user what metrics are sums of [U, 9]: w, w·y, w of users with both classes; and of both models w·loss,
    w·p, and w·AUC of those users."""

    def total(addends_N: Floats) -> Floats:
        return np.bincount(pair.users_N, addends_N, pair.users).astype(np.float64)

    w_N, label_N = pair.weights_N, pair.weights_N * pair.labels_N
    scores = (pair.a_N, pair.b_N)
    aucs = [_user_aucs(pair, scores_N) for scores_N in scores]
    weight_U = total(w_N)
    ranked_U = np.where(np.isnan(aucs[0]), 0.0, weight_U)
    columns = [weight_U, total(label_N), ranked_U]
    columns += [total(w_N * exact.log_losses(scores_N, pair.labels_N)) for scores_N in scores]
    columns += [total(w_N * scores_N) for scores_N in scores]
    columns += [ranked_U * np.nan_to_num(auc_U) for auc_U in aucs]
    return np.ascontiguousarray(np.stack(columns, axis=1))


def _user_aucs(pair: Pair, scores_N: npt.NDArray[np.float32]) -> Floats:
    """[U]; NaN where a user has one class."""
    units_N = np.rint(pair.weights_N / exact.unit_of(pair.weights_N)).astype(np.int64)
    found_U = np.full(pair.users, np.nan)
    of_users = exact.pairs_by_group(scores_N, np.where(pair.labels_N, units_N, -units_N), pair.users_N)
    found_U[np.unique(pair.users_N)] = of_users.aucs
    return found_U


def _sorted(pair: Pair, scores_N: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int32], Floats, Bools]:
    """What the kernel goes through: users and signed weights by ascending score, and the last of each score."""
    order = np.argsort(scores_N, kind="stable")
    scores = scores_N[order]
    last = np.r_[scores[1:] != scores[:-1], np.ones(min(1, len(scores)), bool)]
    return pair.users_N[order], np.where(pair.labels_N, pair.weights_N, -pair.weights_N)[order], last


def _gain(metric: str, a: Any, b: Any) -> Any:
    if metric == "calibration":
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.abs(np.log(a)) - np.abs(np.log(b))
    return a - b if metric in LESS_IS_BETTER else b - a


def _interval(differences_B: Floats) -> tuple[float | None, float | None]:
    """(None, None) where most resamples have none."""
    defined = differences_B[np.isfinite(differences_B)]
    if len(defined) < max(1.0, FEWEST * len(differences_B)):
        return None, None
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def log_odds(probabilities_N: npt.NDArray[np.float32]) -> Floats:
    """Of each, held in [CLIP, 1 − CLIP]."""
    p_N = probabilities_N.astype(np.float64).clip(values.CLIP, 1 - values.CLIP)
    odds_N: Floats = np.log(p_N) - np.log1p(-p_N)
    return odds_N
