"""Where a run's time went adds up, over crashes, stops and ends, and a start knows what those before it did."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from trainer.telemetry.goodput import CAUSES, Goodput, Ledger


class Clock:
    """Seconds since 1970, moved by hand."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def _adds_up(found: Goodput) -> None:
    assert found.lost_seconds.keys() == CAUSES.keys()
    assert found.good_seconds + sum(found.lost_seconds.values()) == pytest.approx(found.wall_seconds)


def _start(path: Path, clock: Clock, step: int, seconds: float = 10.0, alive: float = 0.0) -> Ledger:
    ledger = Ledger(path, workers=2, device="cpu", began=clock.now, alive=alive, clock=clock)
    clock.now += seconds
    ledger.begin(step, examples=1_000)
    return ledger


def test_a_run_that_crashes_loses_the_steps_after_its_checkpoint_and_the_time_until_it_is_started_again(
    tmp_path: Path,
) -> None:
    path, clock = tmp_path / "goodput.json", Clock()
    first = _start(path, clock, step=0)
    clock.now += 100
    first.trained(90, waited=20, bad=5)
    first.spent("evaluation", 6)
    first.mark(40, seconds=0)
    first.spent("checkpoint", 3)
    clock.now += 50
    first.trained(50)
    first.write()  # as it does every so often; then the machine is gone
    _adds_up(first.figures())
    assert first.figures().good_seconds == 65 + 50
    clock.now += 30

    second = _start(path, clock, step=40)
    found = second.figures()
    _adds_up(found)
    assert found.restarts == 1
    assert found.wall_seconds == 200
    assert found.good_seconds == 65
    assert found.lost_seconds == {
        "start_up": 20,
        "data_wait": 20,
        "bad_steps": 5,
        "evaluation": 6,
        "checkpoint": 3,
        "lost_steps": 50,
        "down": 30,
        "other": 1,
    }
    assert found.share == pytest.approx(65 / 200)
    assert found.worker_seconds == {"cpu": 2 * 170}, "nothing is held while the run is down"
    assert found.price_per_billion(36.0, 1_000) is None
    assert found.price_per_billion(36.0, 1_000 + 340) == pytest.approx(1e9 * 3.4 / 340)


def test_a_checkpoint_in_the_middle_of_a_log_interval_keeps_what_was_done_until_then(tmp_path: Path) -> None:
    path, clock = tmp_path / "goodput.json", Clock()
    first = _start(path, clock, step=0)
    clock.now += 8
    first.mark(8, seconds=8)
    clock.now += 12
    first.trained(20)
    first.mark(20, seconds=0)
    first.write()
    # The newest checkpoint was damaged: the one before it is gone on from.
    found = _start(path, clock, step=8).figures()
    assert (found.good_seconds, found.lost_seconds["lost_steps"]) == (8, 12)
    # Without any checkpoint all of it is lost.
    again = _start(path, clock, step=0).figures()
    assert (again.good_seconds, again.lost_seconds["lost_steps"]) == (0, 20)
    _adds_up(again)


def test_what_a_start_did_after_its_last_report_is_lost_with_it(tmp_path: Path) -> None:
    path, clock = tmp_path / "goodput.json", Clock()
    first = _start(path, clock, step=0)
    clock.now += 20
    first.trained(20)
    first.mark(20, seconds=0)
    alive = clock.now + 12  # lines were written until then, and the ledger was not
    clock.now += 15
    second = _start(path, clock, step=20, alive=alive)
    found = second.figures()
    _adds_up(found)
    assert (found.good_seconds, found.lost_seconds["lost_steps"], found.lost_seconds["down"]) == (20, 12, 3)
    clock.now += 1
    second.write("stopped")
    clock.now += 5
    stopped = _start(path, clock, step=20).figures()
    _adds_up(stopped)
    assert (stopped.lost_seconds["lost_steps"], stopped.lost_seconds["down"]) == (12, 8)
    Ledger(path, 2, "cpu", clock.now, clock=clock)
    clock.now += 4  # it dies before its first step
    last = _start(path, clock, step=20, alive=clock.now).figures()
    assert last.lost_seconds["start_up"] == 4 * 10 + 4
    _adds_up(last)


def test_time_after_an_end_that_was_reached_counts_for_nothing(tmp_path: Path) -> None:
    path, clock = tmp_path / "goodput.json", Clock()
    first = _start(path, clock, step=0)
    clock.now += 90
    first.trained(90)
    first.mark(10, seconds=0)
    first.write("reached")
    clock.now += 86_400  # tomorrow's data
    found = _start(path, clock, step=10).figures()
    _adds_up(found)
    assert found.wall_seconds == 110
    assert found.lost_seconds["down"] == 0


def test_a_ledger_that_cannot_be_read_is_said_and_begun_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, clock = tmp_path / "goodput.json", Clock()
    for content in ("{", json.dumps({"format_version": 99}), json.dumps({"format_version": 1, "odd": 1})):
        path.write_text(content)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert _start(path, clock, step=0).figures().restarts == 0
        assert "goodput is counted from this start on" in caplog.text
