"""Who is named for a stall: whoever is behind or silent, never those that wait for it."""

from __future__ import annotations

import pytest

from trainer.stalls import PATIENT, Report, Seen, judge, lost

LIMIT = 10.0


def seen(rank: int, step: int, idle: float = 0.0, silent: float = 0.0, phase: str = "step", **values: bool) -> Seen:
    return Seen(Report(rank, "host", 100 + rank, 1, step, phase, idle, **values), silent)


def named(*ranks: Seen) -> list[int]:
    return [culprit.report.rank for culprit in judge({each.report.rank: each for each in ranks}, LIMIT)]


def test_those_that_wait_are_not_named() -> None:
    assert named(seen(0, 7, 11, waits=True), seen(1, 7, 12), seen(2, 7, 11, waits=True)) == [1]
    assert named(seen(0, 8, 11, waits=True), seen(1, 7, 12, waits=True)) == [1]  # the one that is behind
    assert named(seen(0, 7, 11, waits=True), seen(1, 7, 12, waits=True)) == [0, 1]  # the exchange itself


def test_silence_is_named_before_all_else() -> None:
    assert named(seen(0, 7, 11), seen(1, 8, 1, silent=12)) == [1]
    assert named(seen(0, 0, 11, waits=True), seen(1, 0, 1, silent=12, phase="starting")) == [1]


@pytest.mark.parametrize("phase", sorted(PATIENT))
def test_what_may_last_is_no_stall_for_anybody(phase: str) -> None:
    assert named(seen(0, 7, 50, phase=phase), seen(1, 8, 50, waits=True)) == []


def test_one_that_is_slow_but_moves_is_not_named() -> None:
    assert named(seen(0, 8, 11, waits=True), seen(1, 7, 1, phase="evaluation")) == []
    assert named(seen(0, 7, 9), seen(1, 7, 9)) == []


def test_who_left_in_order_or_said_its_error_is_not_lost() -> None:
    ranks = {1: seen(1, 7, silent=5, ended=True), 2: seen(2, 7, silent=5), 3: seen(3, 7, silent=1)}
    assert [culprit.report.rank for culprit in lost(ranks, 3.0)] == [2]
    assert (
        "rank 2 (host host, pid 102), last seen at step 7 (step), has said nothing for 5 s" in lost(ranks, 3)[0].line()
    )


def test_reports_cross_the_store_whole() -> None:
    report = Report(3, "höst", 5, 8, 13, "backward", 1.5, True, ("a.py:1 f: g()",), "ValueError: x", False)
    assert Report.from_json(report.to_json().encode()) == report
