"""The bootstrap of two models' difference: what a resample is, that intervals hold, and that identical is zero."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.metrics.slow import slow_gauc, slow_pairs
from trainer.metrics import exact
from trainer.metrics.bootstrap import METRICS, Pair, compare, resample

# few distinct scores, users and weights: ties, users of one class, resamples of one class
CASES = st.lists(
    st.tuples(st.integers(1, 9), st.integers(1, 9), st.booleans(), st.integers(1, 4), st.integers(0, 5)),
    min_size=1,
    max_size=30,
)


def _pair(case: list[tuple[int, int, bool, int, int]]) -> Pair:
    a, b, labels, weights, users = (np.array(column) for column in zip(*case, strict=True))
    codes = np.unique(users, return_inverse=True)[1].astype(np.int32)
    return Pair((a / 10).astype(np.float32), (b / 10).astype(np.float32), labels, weights / 2.0, codes)


@settings(max_examples=25, deadline=None)
@given(CASES, st.integers(0, 1000))
def test_a_resample_is_the_metrics_of_users_counted_as_often_as_they_were_drawn(
    case: list[tuple[int, int, bool, int, int]], seed: int
) -> None:
    pair = _pair(case)
    drawn = resample(pair, 2, seed)
    for number in range(2):
        times = np.random.default_rng([seed, number]).poisson(1.0, pair.users)
        w, y = pair.weights_N * times[pair.users_N], pair.labels_N.astype(float)
        for model, scores in enumerate((pair.a_N, pair.b_N)):
            p = scores.astype(np.float64)
            expected = exact.evaluate_task(p, y, w)
            won, pairs = slow_pairs(p, y, w)
            by_user = slow_gauc(p, y, w, pair.users_N)[0]
            references = {"auc": won / pairs if pairs else None, "gauc": by_user}
            references |= {"ne": expected.ne, "calibration": expected.calibration}
            for metric in METRICS:
                value, reference = drawn[metric][model][number], references[metric]
                if reference is None:
                    assert not np.isfinite(value), metric
                else:
                    assert value == pytest.approx(reference, rel=1e-6), metric


def _world(random: np.random.Generator, users: int, noise_a: float, noise_b: float) -> Pair:
    """Users with a taste of their own, who see some positions each; models see it through noise."""
    of_user = random.integers(1, 12, users)
    user = np.repeat(np.arange(users, dtype=np.int32), of_user)
    odds = random.normal(-1, 1, len(user)) + random.normal(0, 1, users)[user]
    labels = random.random(len(user)) < 1 / (1 + np.exp(-odds))

    def seen(noise: float) -> np.ndarray:
        off = random.normal(0, noise, len(user)) + random.normal(0, noise, users)[user]
        return (1 / (1 + np.exp(-(odds + off)))).astype(np.float32)

    return Pair(seen(noise_a), seen(noise_b), labels, np.ones(len(user)), user)


def test_identical_models_differ_by_exactly_nothing() -> None:
    pair = _world(np.random.default_rng(0), 300, 0.5, 0.5)
    found = compare(Pair(pair.a_N, pair.a_N.copy(), pair.labels_N, pair.weights_N, pair.users_N), 50)
    for metric in METRICS:
        of = found[metric]
        assert (of.difference, of.low, of.high, of.gain, of.better) == (0.0, 0.0, 0.0, 0.0, ""), metric


def test_a_planted_better_model_is_found_whichever_it_is_and_the_seed_decides() -> None:
    pair = _world(np.random.default_rng(1), 2_000, 1.0, 0.3)
    found = compare(pair, 200, seed=3)
    assert {metric: found[metric].better for metric in ("ne", "auc", "gauc")} == {"ne": "b", "auc": "b", "gauc": "b"}
    turned = compare(Pair(pair.b_N, pair.a_N, pair.labels_N, pair.weights_N, pair.users_N), 200, seed=3)
    assert turned["auc"].better == "a"
    assert turned["auc"].low == pytest.approx(-found["auc"].high)
    assert compare(pair, 200, seed=3) == found
    assert compare(pair, 200, seed=4)["auc"].low != found["auc"].low
    too_high = np.minimum(pair.b_N * 1.5, 0.999).astype(np.float32)
    calibration = compare(Pair(too_high, pair.b_N, pair.labels_N, pair.weights_N, pair.users_N), 200)["calibration"]
    assert (calibration.better, calibration.a > calibration.b) == ("b", True)


def test_what_is_not_defined_has_no_interval() -> None:
    pair = _world(np.random.default_rng(2), 40, 0.5, 0.5)
    one_class = compare(Pair(pair.a_N, pair.b_N, np.zeros(len(pair.a_N), bool), pair.weights_N, pair.users_N), 20)
    assert (one_class["auc"].difference, one_class["auc"].better, one_class["ne"].a) == (None, "", None)
    empty = np.zeros(len(pair.a_N), bool)
    assert compare(pair.where(empty), 20)["auc"].difference is None


def _coverage(worlds: int, users: int, resamples: int, truth_users: int) -> dict[str, float]:
    """How often the interval holds the true difference, which is that of a very large sample."""
    truth = {metric: compare(_world(np.random.default_rng(99), truth_users, 0.8, 0.6), 2)[metric] for metric in METRICS}
    held = dict.fromkeys(METRICS, 0)
    for world in range(worlds):
        found = compare(_world(np.random.default_rng([7, world]), users, 0.8, 0.6), resamples, seed=world)
        for metric in METRICS:
            held[metric] += bool(found[metric].low <= truth[metric].difference <= found[metric].high)
    return {metric: count / worlds for metric, count in held.items()}


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    found = _coverage(40, 200, 80, 30_000)  # at 95 %, 33 of 40 or more hold in 999 of 1,000 such tests
    assert all(share >= 33 / 40 for share in found.values()), found


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_intervals_hold_the_truth_at_the_nominal_rate() -> None:
    found = _coverage(300, 300, 150, 100_000)
    assert all(0.92 <= share <= 0.98 for share in found.values()), found
