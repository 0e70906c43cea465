"""Exact metrics of predictions that lie on several ranks: those of one process to the bit, and a slow reference's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch.distributed as dist

from tests.distributed.ranks import run_ranks
from tests.metrics.slow import slow_gauc, slow_pairs
from trainer.metrics import exact
from trainer.metrics.exchange import Exchange

Columns = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # score, label, weight, user


def _cases() -> dict[str, Columns]:
    random = np.random.default_rng(3)
    count = 1_200
    scores = random.random(count).astype(np.float32)
    labels = (random.random(count) < 0.2).astype(np.float32)
    weights = (random.random(count) * 3).astype(np.float32)
    users = random.integers(-200, 200, count)
    ones = np.ones(count, np.float32)
    broken = scores.copy()
    broken[::50] = np.nan
    one_user = np.where(random.random(count) < 0.9, 7, users)
    return {
        "weights": (scores, labels, weights, users),
        "plain": (scores, labels, ones, users),
        "ties": (np.round(scores, 1), labels, weights, users),
        "one score": (ones / 2, labels, weights, users),
        "broken": (broken, labels, weights, users),
        "far apart": (scores, labels, np.where(users % 7, weights * 1e-12, weights * 1e12).astype(np.float32), users),
        "some weigh nothing": (scores, labels, weights * (weights > 1), users),
        "one user has nearly all": (scores, labels, weights, one_user),
        "one class": (scores, ones, weights, users),
        "one": tuple(column[:1] for column in (scores, labels, weights, users)),
        "none": tuple(column[:0] for column in (scores, labels, weights, users)),
    }  # type: ignore[return-value]


def _scores(columns: Columns, exchange: Exchange) -> tuple[Any, ...]:
    p, y, w, user = columns
    return exact.evaluate_task(p, y, w, exchange), exact.gauc(p, y, user, w, exchange)


def _on_ranks(rank: int, world_size: int) -> list[tuple[str, str, tuple[Any, ...]]]:
    """Each case under three ways of spreading it."""
    found = []
    cases = _cases()
    for size in range(1, world_size + 1):
        group = dist.new_group(list(range(size)), backend="gloo")
        if rank >= size:
            continue
        for name, columns in cases.items():
            count = len(columns[0])
            for way, mine in {
                "dealt": np.arange(rank, count, size),
                "uneven": np.flatnonzero(np.minimum(np.arange(count) // 100, size - 1) == rank),
                "all on the last": np.arange(count) if rank == size - 1 else np.arange(0),
            }.items():
                exchange = Exchange(group)
                found.append((name, f"{way}, {size}", _scores(tuple(c[mine] for c in columns), exchange)))  # type: ignore[arg-type]
    return found


@pytest.mark.timeout(90)
def test_ranks_find_to_the_bit_what_one_process_finds() -> None:
    alone = {name: repr(_scores(columns, Exchange())) for name, columns in _cases().items()}
    of_ranks = run_ranks(_on_ranks, 3, timeout=80)
    assert [len(found) for found in of_ranks] == [3 * 3 * len(alone), 2 * 3 * len(alone), 3 * len(alone)]
    different = [(name, way) for found in of_ranks for name, way, scores in found if repr(scores) != alone[name]]
    assert different == []


@pytest.mark.parametrize("name", ["weights", "ties", "broken", "some weigh nothing", "one user has nearly all"])
def test_the_slow_reference_finds_the_same(name: str) -> None:
    p, y, w, users = (column[:300].astype(np.float64) for column in _cases()[name])
    values, by_user = _scores((p, y, w, users.astype(np.int64)), Exchange())
    kept = np.isfinite(p) & (w > 0)
    p, y, w, users = p[kept], y[kept], w[kept], users[kept]
    likely = np.where(y > 0, p, 1 - p).clip(1e-12)
    won, pairs = slow_pairs(p, y, w)
    assert values.auc == pytest.approx(won / pairs, abs=1e-12)
    assert values.calibration == pytest.approx((w * p).sum() / (w * y).sum(), rel=1e-12)
    assert values.loss == pytest.approx(-(w * np.log(likely)).sum() / w.sum(), rel=1e-6)  # 1 − 1e-12 is rounded
    value, both, left_out, one_class = slow_gauc(p, y, w, users)
    assert by_user.value == pytest.approx(value, abs=1e-12)
    assert (by_user.users, by_user.one_class_users) == (both, one_class)
    assert by_user.left_out_share == pytest.approx(left_out, abs=1e-12)


class _Watched(Exchange):
    """Remembers how many rows came to it."""

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        super().__init__(group)
        self.held = 0

    def to_owners(self, owner_N: np.ndarray, columns: Any) -> list[np.ndarray]:
        found = super().to_owners(owner_N, columns)
        self.held = max(self.held, len(found[0]))
        return found


def _held(rank: int, world_size: int) -> tuple[int, int, int]:
    """Most rows held for AUC of scores that crowd in one place, for AUC of one score, and for GAUC."""
    random = np.random.default_rng(rank)
    count = 0 if rank == 1 else 30_000
    p = np.r_[random.random(count // 10), 0.01 + 1e-5 * random.random(count - count // 10)]
    y, users = (random.random(count) < 0.1).astype(float), random.integers(0, 5_000, count)
    found = []
    for scores in (p, np.full(count, 0.25)):
        watched = _Watched(dist.group.WORLD)
        exact.auc(scores, y, exchange=watched)
        found.append(watched.held)
    watched = _Watched(dist.group.WORLD)
    exact.gauc(p, y, users, exchange=watched)
    return found[0], found[1], watched.held


@pytest.mark.timeout(90)
def test_no_rank_holds_more_than_about_its_share() -> None:
    held = np.array(run_ranks(_held, 3, timeout=80))
    share = 60_000 / 3
    assert held[:, 0].max() < 1.3 * share
    assert held[:, 1].max() <= 2  # one score travels as one, however often it was predicted
    assert held[:, 2].max() < 1.1 * share
