"""NE, AUC, GAUC and calibration: by hand, against slow references, over ranks, and what is not defined."""

from __future__ import annotations

import base64
import json
import math
import zlib
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.distributed.ranks import run_ranks
from tests.metrics.slow import slow_gauc, slow_pairs
from trainer.metrics import TaskMetrics, exact
from trainer.metrics.streaming import BINS, SCOPES, SPAN, SUMS

Case = list[tuple[int, int, int, int]]
# few distinct scores, users and weights: many ties
CASES = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 1), st.integers(0, 3), st.integers(0, 3)), max_size=40)


def _arrays(case: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    table = np.array(case, dtype=np.float64).reshape(-1, 4)
    return table[:, 0] / 10, table[:, 1], table[:, 2], table[:, 3].astype(np.int64)


def _stream(*columns: Any) -> TaskMetrics:
    metrics = TaskMetrics(["click"])
    metrics.update(*(torch.as_tensor(np.asarray(c), dtype=torch.float64).reshape(-1, 1) for c in columns))
    return metrics


def test_by_hand() -> None:
    p, y, w = np.array([0.8, 0.6, 0.6, 0.2]), np.array([1.0, 1.0, 0.0, 0.0]), np.array([1.0, 2.0, 1.0, 4.0])
    found = exact.evaluate_task(p, y, w)
    loss = -(math.log(0.8) + 2 * math.log(0.6) + math.log(0.4) + 4 * math.log(0.8)) / 8
    rate = 3 / 8
    floor = -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate))
    assert found.loss == pytest.approx(loss)
    assert found.ne == pytest.approx(loss / floor)
    assert found.calibration == pytest.approx((0.8 + 1.2 + 0.6 + 0.8) / 3)
    # pairs: (.8 | .6) 1·1, (.8 | .2) 1·4, (.6 | .6) half of 2·1, (.6 | .2) 2·4; of 3·5
    assert found.auc == pytest.approx((1 + 4 + 1 + 8) / 15)
    assert found.examples == 4
    assert found.base_rate == rate
    streamed = _stream(p, y, w).reduced().values("window")["click"]
    assert streamed.ne == pytest.approx(found.ne)
    assert streamed.auc == pytest.approx(found.auc)
    assert streamed.auc_error == pytest.approx(1 / 15)


def test_gauc_by_hand() -> None:
    users = np.array([7, 7, 7, 9, 9, -3, -3, -3])
    scores = np.array([0.9, 0.5, 0.1, 0.4, 0.3, 0.2, 0.2, 0.7])
    labels = np.array([1, 0, 1, 1, 1, 1, 0, 0])
    # user 7: 1 of 2 pairs won; user 9: positives only; user −3: one tie, one lost: .25
    found = exact.gauc(scores, labels, users)
    assert found.value == pytest.approx((3 * 0.5 + 3 * 0.25) / 6)
    assert (found.users, found.one_class_users) == (2, 1)
    assert found.one_class_share == pytest.approx(1 / 3)
    assert found.left_out_share == pytest.approx(2 / 8)
    broken = exact.gauc(np.append(scores, np.nan), np.append(labels, 0), np.append(users, 9))
    assert broken == found


@settings(max_examples=150, deadline=None)
@given(CASES)
def test_exact_equals_the_slow_reference(case: Case) -> None:
    p, y, w, users = _arrays(case)
    won, pairs = slow_pairs(p, y, w)
    assert exact.auc(p, y, w) == (pytest.approx(won / pairs) if pairs else None)
    value, both, left_out, one_class = slow_gauc(p, y, w, users)
    found = exact.gauc(p, y, users, w)
    assert found.value == (pytest.approx(value) if value is not None else None)
    assert (found.users, found.one_class_users) == (both, one_class)
    assert found.left_out_share == pytest.approx(left_out, abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(CASES)
def test_streaming_equals_exact_but_for_the_stated_bound(case: Case) -> None:
    p, y, w, _ = _arrays(case)
    streamed, expected = _stream(p, y, w).reduced().values("lifetime")["click"], exact.evaluate_task(p, y, w)
    for name in ("examples", "weight", "loss", "base_rate", "ne", "calibration"):
        value = getattr(expected, name)
        assert getattr(streamed, name) == (None if value is None else pytest.approx(value)), name
    assert (streamed.auc is None) == (expected.auc is None)
    if expected.auc is not None:
        assert abs(streamed.auc - expected.auc) <= streamed.auc_error + 1e-12


# log-odds in fractions of a bin around a few places, the outermost bins and what lies beyond them among these
NEAR = st.tuples(st.sampled_from([-30.0, -SPAN, -3.0, 0.0, 0.5, SPAN]), st.floats(-1.5, 1.5))
CROWDED = st.lists(st.tuples(NEAR, st.booleans(), st.floats(0.0625, 50.0, width=32)), min_size=2, max_size=40)


@settings(max_examples=100, deadline=None)
@given(CROWDED)
def test_auc_of_a_histogram_is_within_the_bound_that_it_states(case: list[Any]) -> None:
    """The bound is the histogram's own: half the pairs that share a bin, over all pairs."""
    width = 2 * SPAN / BINS
    logits = np.array([place + offset * width for (place, offset), _, _ in case])
    p, y, w = 1 / (1 + np.exp(-logits)), np.array([float(of) for _, of, _ in case]), np.array([of for *_, of in case])
    streamed, won = _stream(p, y, w).reduced().values("lifetime")["click"], exact.auc(p, y, w)
    assert (streamed.auc is None) == (won is None)
    if won is None:
        return
    bins = np.clip(np.floor((np.log(p) - np.log1p(-p) + SPAN) / width), 0, BINS - 1)
    together = sum(w[(bins == b) & (y == 1)].sum() * w[(bins == b) & (y == 0)].sum() for b in set(bins.tolist()))
    assert streamed.auc_error == pytest.approx(together / 2 / (w[y == 1].sum() * w[y == 0].sum()), abs=1e-9)
    assert abs(streamed.auc - won) <= streamed.auc_error + 1e-9


def test_auc_of_a_long_stream_is_within_a_tight_bound() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(-3, 1, 200_000)
    p = 1 / (1 + np.exp(-logits))
    y = (random.random(len(p)) < p).astype(np.float64)
    found = _stream(p, y, np.ones(len(p))).reduced().values("lifetime")["click"]
    assert found.auc_error < 1e-3
    assert abs(found.auc - exact.auc(p, y)) <= found.auc_error


def test_not_defined_is_null_and_valid_json() -> None:
    for y in ([], [0.0, 0.0], [1.0, 1.0]):
        found = _stream([0.5] * len(y), y, [1.0] * len(y)).reduced().values("window")["click"]
        assert found.ne is None
        assert found.auc is None
        assert (found.calibration is None) == (sum(y) == 0)
        expected = vars(exact.evaluate_task(np.full(len(y), 0.5), np.array(y)))
        assert {k: v if v is None else pytest.approx(v) for k, v in expected.items()} == vars(found)
        json.dumps(vars(found), allow_nan=False)


def test_null_labels_fillers_and_broken_predictions_count_nowhere() -> None:
    p, y = [0.7, 0.2, 0.4], [1.0, 0.0, 1.0]
    plain = _stream(p, y, [1.0] * 3).reduced().values("window")["click"]
    padded = (
        _stream([*p, 0.9, float("nan")], [*y, 0.0, float("nan")], [1.0] * 3 + [0.0] * 2)
        .reduced()
        .values("window")["click"]
    )
    assert padded == plain
    broken = _stream([*p, float("nan"), float("inf")], [*y, 1.0, 0.0], [1.0] * 5).reduced().values("window")["click"]
    assert broken.nonfinite == 2
    assert (broken.ne, broken.auc, broken.examples) == (plain.ne, plain.auc, 3)
    sure = _stream([1.0, 0.0], [0.0, 1.0], [1.0, 1.0]).reduced().values("window")["click"]
    assert math.isfinite(sure.loss)


def test_scopes_and_state() -> None:
    metrics = TaskMetrics(["a", "b"])
    random = torch.Generator().manual_seed(0)

    def batch() -> list[torch.Tensor]:
        labels = (torch.rand(50, 2, generator=random) < 0.3).double()
        return [torch.rand(50, 2, generator=random), labels, torch.rand(50, 2, generator=random)]

    metrics.update(*batch())
    metrics.reset("window")
    metrics.update(*batch())
    metrics.reset("segment")
    metrics.update(*batch())
    counts = {scope: metrics.reduced().values(scope)["b"].examples for scope in ("lifetime", "segment", "window")}
    assert counts == {"lifetime": 150, "segment": 50, "window": 100}
    state = json.loads(json.dumps(metrics.reduced().state()))
    assert len(json.dumps(state)) < 60_000
    resumed, other = TaskMetrics(["a", "b"]), TaskMetrics(["a", "b"])
    resumed.load(state, rank=0)
    other.load(state, rank=1)
    assert resumed.reduced().values("lifetime") == metrics.reduced().values("lifetime")
    assert other.reduced().values("lifetime")["a"].examples == 0
    grown = TaskMetrics(["new", "b"])
    grown.load(state, rank=0)
    assert grown.reduced().values("window")["b"] == metrics.reduced().values("window")["b"]
    assert grown.reduced().values("window")["new"].examples == 0


def test_sums_are_kept_when_fractions_are_carried_and_of_the_first_release(monkeypatch: pytest.MonkeyPatch) -> None:
    p, y, w = (torch.rand(600, 1, generator=torch.Generator().manual_seed(k)) for k in range(3))
    whole, carried = TaskMetrics(["click"]), TaskMetrics(["click"])
    whole.update(p, (y > 0.5).float(), w * 1e7)
    monkeypatch.setattr("trainer.metrics.streaming.CARRY_AT", 100)
    for part in reversed(range(0, 600, 40)):
        rows = slice(part, part + 40)
        carried.update(p[rows], (y[rows] > 0.5).float(), w[rows] * 1e7)
    assert carried.reduced().state() == whole.reduced().state()
    sums = whole.reduced().sums
    assert sums.shape == (len(SCOPES), 1, SUMS + 2 * BINS)
    content = base64.b64encode(zlib.compress(sums.astype("<f8").tobytes())).decode()
    old = TaskMetrics(["click"])
    old.load({"tasks": ["click"], "bins": BINS, "sums": content}, rank=0)
    np.testing.assert_allclose(old.reduced().sums, sums, rtol=1e-12)


def _rank_values(rank: int, world_size: int) -> Any:
    random = np.random.default_rng(1)
    p, y, w = random.random((90, 2)), (random.random((90, 2)) < 0.3).astype(np.float64), random.random((90, 2))
    own = [torch.from_numpy(array[rank::world_size]) for array in (p, y, w)]
    metrics, whole = TaskMetrics(["a", "b"]), TaskMetrics(["a", "b"])
    metrics.update(*own)
    whole.update(*(torch.from_numpy(array) for array in (p, y, w)))
    first, alone = metrics.reduced(), whole.reduced(dist.new_group([rank]))
    metrics.load(first.state(), rank)
    loaded = metrics.reduced()
    uninterrupted = TaskMetrics(["a", "b"])
    for each in (uninterrupted, uninterrupted, metrics):
        each.update(*own)
    return first, loaded, alone, uninterrupted.reduced().state() == metrics.reduced().state()


@pytest.mark.timeout(90)
def test_ranks_together_see_the_whole_stream() -> None:
    for first, loaded, alone, went_on_to_the_bit in run_ranks(_rank_values, 2):
        assert first.values("lifetime")["a"].examples == 90
        assert loaded.state() == first.state()
        np.testing.assert_allclose(first.sums, alone.sums, rtol=1e-11, atol=1e-11)
        assert went_on_to_the_bit
