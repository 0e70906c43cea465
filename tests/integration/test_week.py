"""Seven commands of one day each, every one begun with the last, and one of them killed on the way, make the model that
one command over the week makes: to the bit."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from embeddings.config import Table
from tests.integration.command import TORCHRUN, Ended, latest_step, ran, started, write_run_file
from tests.trainer.runs import differing, newest_state, saved_tensors

DAYS = [f"2026-01-0{day}" for day in range(1, 8)]
KILLED = DAYS[3]
ROWS = {day: [23 + index, 90 if day == KILLED else 9] for index, day in enumerate(DAYS)}
TABLES = {
    "item": Table(rows=256, mapping="vocabulary", buckets=8),
    "user_id": Table(rows=8, mapping="managed", buckets=2, admit_after=2),
    "tags": Table(rows=50, sharding="table_wise"),
}


def fine(ended: Ended) -> Ended:
    assert ended.code == 0, ended.err
    return ended


def descendants(pid: int) -> list[int]:
    """Processes that a process has started, and those that these have."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    children = [int(word) for word in listed.stdout.split()]
    return [each for child in children for each in (child, *descendants(child))]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("launcher", [(), TORCHRUN], ids=["one process", "two processes"])
def test_seven_days_are_a_week(tmp_path: Path, launcher: tuple[str, ...]) -> None:
    sections: dict[str, Any] = {
        "embeddings": {"tables": TABLES},
        "model": {"dropout": 0.2},
        "checkpoint": {"every_steps": 2, "every_minutes": 0.0},
        "train": {"log_every": 3},
        "launch": {"workers": 1},  # under torchrun its own number counts
    }
    write_run_file(tmp_path, ROWS, **sections)

    def command(run: str, segments: str, parent: str | None, resume: str = "never") -> tuple[str, ...]:
        begun = ("--init-from", f"runs/{parent}") if parent else ()
        place = ("--config", "run.toml", "--run-dir", f"runs/{run}", "--resume", resume)
        return ("train", *place, "--data.segments", segments, *begun)

    fine(ran(tmp_path, *command("week", "..", None), launcher=launcher, timeout=200))
    parent = None
    for day in DAYS:
        if day == KILLED:
            assert parent is not None
            before = latest_step(tmp_path / "runs" / parent)
            with started(tmp_path, *command(day, day, parent), launcher=launcher) as killed:
                run = tmp_path / "runs" / day
                killed.until(lambda run=run, before=before: latest_step(run) > before + 2, "a checkpoint of the day")
                for process in reversed(descendants(killed.process.pid)):  # torchrun's are in sessions of their own
                    os.kill(process, signal.SIGKILL)
                assert killed.end(signal.SIGKILL, everyone=True).code != 0
        ended = fine(ran(tmp_path, *command(day, day, parent, "auto"), launcher=launcher, timeout=200))
        begins = parent is not None and day != KILLED
        assert ("the model begins with" in ended.err + ended.out) == begins
        parent = day
    week, last = tmp_path / "runs" / "week", tmp_path / "runs" / DAYS[-1]
    assert differing(saved_tensors(week), saved_tensors(last)) == []
    apart = {"position": None, "resumed_from": ()}
    assert newest_state(week).model_copy(update=apart) == newest_state(last).model_copy(update=apart)
    audited = fine(ran(tmp_path, "audit", "--run", f"runs/{DAYS[-1]}", "--lineage"))
    assert f"audit: fine · {sum(map(sum, ROWS.values()))} rows read, each exactly once" in audited.out
    assert "of 8 attempts of 7 runs" in audited.out
