"""Ray workers that die in mid-run: the command begins them again by itself, and the run ends as one that was never
hurt."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.integration.command import TORCHRUN, Command, Ended, ran, ranks_under_ray, started, write_run_file
from tests.trainer.runs import differing, saved_tensors
from trainer.audit import audit_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
SEGMENTS = {"2026-01-01": [14, 9], "2026-01-02": [16, 8], "2026-01-03": [17]}
SETTINGS: dict[str, Any] = {
    "data": {"segments": "..", "epochs": 4},
    "model": {"dropout": 0.2},
    "train": {"log_every": 1},
    "checkpoint": {"every_steps": 4, "every_minutes": 0.0},
}
STEPS = 4 * 14


def lines(folder: Path) -> list[dict[str, Any]]:
    path = folder / "run" / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def step(folder: Path) -> int:
    return max((line["step"] for line in lines(folder)), default=0)


def trained_and_hurt(folder: Path, killed: slice, at: int) -> Ended:
    with started(folder, "train", "--config", "run.toml", "--run-dir", "run", "--launch.workers", "2") as command:
        kill(command, killed, at)
        return command.end(timeout=200)


def kill(command: Command, killed: slice, at: int) -> None:
    command.until(lambda: step(command.cwd) >= at, f"step {at}", timeout=150)
    for pid in ranks_under_ray(command)[killed]:
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("killed", "at"),
    [
        pytest.param(slice(1, 2), 10, id="one worker"),
        pytest.param(slice(None), 10, id="all workers"),
        pytest.param(slice(0, 1), 1, id="one before the first checkpoint"),
    ],
)
def test_it_goes_on_by_itself_to_the_bit_as_if_never_hurt(tmp_path: Path, killed: slice, at: int) -> None:
    write_run_file(tmp_path, SEGMENTS, **SETTINGS)
    ended = trained_and_hurt(tmp_path, killed, at)
    assert ended.code == 0, ended.err
    assert ended.err.count("begun again from ") == 1
    assert "start 2, restart 1 of 3 without a new checkpoint" in ended.err
    assert "begun again from " in (tmp_path / "run" / "train.log").read_text()
    assert json.loads((tmp_path / "run" / "goodput.json").read_text())["starts"] == 2
    trained = [line["step"] for line in lines(tmp_path) if line["kind"] == "train"]
    assert trained == list(range(1, STEPS + 1)), "each step is told once"
    whole = ran(tmp_path, "train", "--config", "run.toml", "--run-dir", "whole", launcher=TORCHRUN, timeout=200)
    assert whole.code == 0, whole.err
    assert differing(saved_tensors(tmp_path / "whole"), saved_tensors(tmp_path / "run")) == []
    found = audit_run(tmp_path / "run")
    assert (found.all_findings, found.steps) == ([], STEPS)


def test_a_stop_is_heard_by_the_start_that_follows(tmp_path: Path) -> None:
    write_run_file(tmp_path, SEGMENTS, **{**SETTINGS, "data": {"segments": "..", "epochs": 500}})
    with started(tmp_path, "train", "--config", "run.toml", "--run-dir", "run", "--launch.workers", "2") as command:
        kill(command, slice(1, 2), 10)
        command.until(lambda: "begun again" in command.said(), "a new start", timeout=60)
        ended = command.end(signal.SIGINT, timeout=100)
    assert ended.code == 0, ended.err
    assert lines(tmp_path)[-1]["event"] == "stopped"
    assert audit_run(tmp_path / "run").all_findings == []
