"""A rank that is killed or stopped, under torchrun and under Ray where no restart is wanted: one clear line in bounded
time, and the run goes on from its newest checkpoint."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.integration.command import TORCHRUN, Command, latest_step, ranks_under_ray, started, write_run_file
from tests.integration.conftest import Call

LAUNCH = {"watchdog_seconds": 2.0, "timeout_seconds": 15.0, "workers": 2, "max_restarts": 0}


def started_run(folder: Path, launcher: tuple[str, ...]):  # type: ignore[no-untyped-def] # a context manager
    write_run_file(folder, {"2026-01-01": [2000]}, checkpoint={"every_steps": 5}, train={"log_every": 1}, launch=LAUNCH)
    return started(folder, "train", "--config", "run.toml", "--run-dir", "run", launcher=launcher)


def rank_of(command: Command, rank: int, launcher: str) -> int:
    """Process id of a training process of the command."""
    if launcher == "ray":
        return ranks_under_ray(command)[rank]
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("RANK") == str(rank) and process.cwd() == str(command.cwd):
                return process.pid
    raise AssertionError(f"rank {rank} does not run")


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("launcher", "number"),
    [
        pytest.param("torchrun", signal.SIGKILL, id="torchrun-killed"),
        pytest.param("torchrun", signal.SIGSTOP, id="torchrun-stopped", marks=pytest.mark.slow),
        pytest.param("ray", signal.SIGKILL, id="ray-killed", marks=pytest.mark.slow),
        pytest.param("ray", signal.SIGSTOP, id="ray-stopped", marks=pytest.mark.slow),
    ],
)
def test_the_lost_rank_is_named_and_the_run_goes_on(
    call: Call, tmp_path: Path, launcher: str, number: signal.Signals
) -> None:
    under_torchrun = launcher == "torchrun"
    with started_run(tmp_path, TORCHRUN if under_torchrun else ()) as command:
        command.until(lambda: latest_step(tmp_path / "run") >= 5, "a checkpoint", timeout=150)
        lost = rank_of(command, 1, launcher)
        began = time.monotonic()
        os.kill(lost, number)
        ended = command.end(timeout=100)
    assert ended.code == 1
    assert time.monotonic() - began < 75  # torchrun gives a stopped process 30 s
    assert len(ended.errors) == 1, ended.err
    assert f", pid {lost})" in ended.errors[0]
    assert "rank 1 (host " in ended.errors[0] or not under_torchrun
    assert "last seen at step" in ended.errors[0]
    assert "`--resume auto` goes on" in ended.errors[0]
    assert "this is a bug" not in ended.err
    if number == signal.SIGSTOP and under_torchrun:
        assert re.search(r"has said nothing for \d s; waiting for it: 0", ended.err)
    step = latest_step(tmp_path / "run") + 1
    arguments = ("--resume", "auto", "--launch.backend", "inline", "--launch.workers", "1", "--max-steps", str(step))
    resumed = call(tmp_path, "train", "--config", "run.toml", "--run-dir", "run", *arguments)
    assert resumed.code == 0, resumed.err
    assert latest_step(tmp_path / "run") == step
