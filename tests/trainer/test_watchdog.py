"""Real ranks of which one stands still, is stopped, or is killed: the others say which, where and since when."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.distributed.ranks import run_ranks
from tests.pipelines.rows import write_segments
from tests.trainer.runs import Run, tiny_config, train_runs
from trainer import evaluation, watchdog
from trainer.beats import Beats
from trainer.checkpoint import checkpointer
from trainer.errors import LostRankError
from trainer.pipeline import SplitPipeline

SECONDS = 0.8  # of the watchdog: it speaks every .2 s
SLEEP = 2.2


@dataclass
class Said(logging.Handler):
    """What the watchdog said on this rank."""

    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        logging.getLogger("trainer.watchdog").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    __hash__ = object.__hash__


class _Runtime:
    """As much of a Runtime as is watched."""

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank, self.world_size, self.beats = rank, world_size, Beats()


def _stuck(rank: int) -> None:
    time.sleep(SLEEP)


def _frozen(rank: int) -> None:
    """Stopped by SIGSTOP, as by a debugger or a host that swaps; woken by a process of its own."""
    subprocess.Popen(["/bin/sh", "-c", f"sleep {SLEEP}; kill -CONT {os.getpid()}"])
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(0.1)


def stalled(rank: int, world_size: int) -> dict[str, tuple[int, list[str]]]:
    """Rank 1 stands still, in two ways, while the other is inside an exchange; {way: (pid, what was said)}."""
    found = {}
    for how in (_stuck, _frozen):
        runtime, said = _Runtime(rank, world_size), Said()
        with watchdog.watching(runtime, SECONDS):  # type: ignore[arg-type]
            for step in (1, 2, 3):
                runtime.beats.beat(step)
                time.sleep(0.3)
                if step == 2 and rank == 1:
                    how(rank)
                dist.all_reduce(torch.ones(1))
            runtime.beats.beat(4, "saving")
            time.sleep(2 * SECONDS)  # may last: nobody is named for it
            dist.all_reduce(torch.ones(1))
        logging.getLogger("trainer.watchdog").removeHandler(said)
        found[how.__name__] = (os.getpid(), said.lines)
        dist.barrier()
    return found


def lonely(rank: int, world_size: int) -> str:
    """Rank 1 ends with an error of its own; what the others raise."""
    group = dist.new_group(timeout=timedelta(seconds=3))  # of a group that may break
    runtime = _Runtime(rank, world_size)
    raised = ""
    try:
        with watchdog.watching(runtime, 4.0):  # type: ignore[arg-type]
            for step in range(1, 6):
                runtime.beats.beat(step)
                if rank == 1 and step == 4:
                    raise MemoryError("no more of it")
                dist.all_reduce(torch.ones(1), group=group)
    except (LostRankError, MemoryError) as error:
        raised = str(error)
    return raised


def stalled_then_lonely(rank: int, world_size: int) -> tuple[dict[str, tuple[int, list[str]]], str]:
    """Both, in the same processes."""
    return stalled(rank, world_size), lonely(rank, world_size)


@pytest.mark.timeout(90)
def test_the_rank_that_stands_still_or_ends_is_named() -> None:
    """Once, with its stack, and again when it moves; its own error is what the others end with."""
    (others, said), (own, raised) = run_ranks(stalled_then_lonely, 2, timeout=80)
    for how in ("_stuck", "_frozen"):
        require_named(others[how][1], *own[how])
    assert "has not moved" in others["_stuck"][1][0]
    assert "_stuck: time.sleep(SLEEP)" in others["_stuck"][1][0]  # the stack crossed the store
    assert "_stuck: time.sleep(SLEEP)" in own["_stuck"][1][0]  # and is in its own log
    assert "has said nothing" in others["_frozen"][1][0]
    assert raised == "no more of it"
    assert "rank 1 (host " in said
    assert "ended with MemoryError: no more of it" in said
    assert "rank 0's exchange at step 4" in said


def require_named(lines: list[str], pid: int, own: list[str]) -> None:
    """Rank 0's lines name rank 1 once, and nobody else."""
    named = [line for line in lines if f"rank 1 (host {os.uname().nodename}, pid {pid})" in line]
    assert len(named) == 1, lines
    assert "at step 2 (step)" in named[0]
    assert "waiting for it: 0" in named[0]
    assert len([line for line in lines if "rank 1 is moving again" in line]) == 1, lines
    assert not [line for line in lines if line.startswith("rank 0 (")], lines


def evaluating_long(rank: int, world_size: int, run: Run) -> list[str]:
    """An evaluation of many batches, and scores, that take several times the watchdog's patience."""
    said, beating = Said(), evaluation._beating

    def slowly(*args: Any) -> Iterator[Any]:
        for batch in beating(*args):
            time.sleep(0.3)
            yield batch
        time.sleep(2.0)

    evaluation._beating = slowly
    train_runs(rank, world_size, [run])
    return said.lines


@pytest.mark.slow
@pytest.mark.timeout(90)
def test_a_long_evaluation_is_no_stall(tmp_path: Path) -> None:
    write_segments(tmp_path / "rows", {"2026-01-01": [10], "2026-01-02": [30]})
    days = {"segments": "2026-01-01", "eval_segments": "2026-01-02"}
    config = tiny_config(tmp_path / "rows", data=days, launch={"watchdog_seconds": 0.8})
    assert run_ranks(evaluating_long, 1, Run(config, tmp_path / "run"), timeout=80) == [[]]
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert "eval" in kinds


def losing_a_peer_while_saving(rank: int, world_size: int, run: Run) -> float:
    """An exchange fails while a checkpoint is written that waits for the lost peer. Returns how long leaving took."""
    failed, progress = [], SplitPipeline.progress

    def until_the_third(pipeline: Any, feed: Any) -> Any:
        if failed.append(time.monotonic()) or len(failed) < 3:
            return progress(pipeline, feed)
        raise RuntimeError("[a/gloo/tcp/pair.cc:5] Connection closed by peer [::1]:3")

    checkpointer.write_checkpoint = lambda *_: threading.Event().wait()
    SplitPipeline.progress = until_the_third
    with pytest.raises(LostRankError):
        train_runs(rank, world_size, [run])
    return time.monotonic() - failed[-1]


@pytest.mark.timeout(90)
def test_a_rank_that_lost_another_does_not_wait_for_a_checkpoint_that_takes_both(tmp_path: Path) -> None:
    write_segments(tmp_path / "rows", {"2026-01-01": [30]})
    config = tiny_config(tmp_path / "rows", checkpoint={"every_steps": 2}, launch={"watchdog_seconds": 0.0})
    (seconds,) = run_ranks(losing_a_peer_while_saving, 1, Run(config, tmp_path / "run"), timeout=80)
    assert seconds < checkpointer.CLOSING_SECONDS / 3


def test_alone_its_own_stack_is_said() -> None:
    said, beats, ready = Said(), Beats(), threading.Event()
    watch = watchdog.Watchdog(beats, 0, 1, 0.4)
    beats.beat(5)
    watch.start()
    ready.wait(1.5)
    watch.close()
    logging.getLogger("trainer.watchdog").removeHandler(said)
    assert "has not moved" in said.lines[0]
    assert "ready.wait(1.5)" in said.lines[0]


def test_a_beat_costs_less_than_a_microsecond() -> None:
    beats, beat = Beats(), Beats.beat
    seconds = []
    for _ in range(5):
        started = time.thread_time()
        for step in range(20_000):
            beat(beats, step)
        seconds.append((time.thread_time() - started) / 20_000)
    assert min(seconds) < 1e-6


@pytest.mark.parametrize(
    ("error", "broken"),
    [
        (RuntimeError("[a/gloo/tcp/pair.cc:5] Connection closed by peer [::1]:3"), True),
        (RuntimeError("Timed out waiting 8000ms for recv operation to complete"), True),
        (dist.DistStoreError("wait timeout"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("gloo"), False),
    ],
)
def test_what_a_lost_peer_looks_like(error: Any, broken: bool) -> None:
    assert watchdog.is_broken_exchange(error) == broken


def test_a_store_that_does_not_answer_is_named_once_until_it_answers() -> None:
    said = Said()
    watched = watchdog.Watchdog(Beats(), 0, 2, SECONDS, store=object())

    def look(answered_before: float) -> int:
        watched._answered = watched._looked = time.monotonic()
        watched._answered -= answered_before
        watched._beats.beat(1)
        watched._look()
        return len([line for line in said.lines if "has not answered" in line])

    try:
        assert [look(10), look(11), look(12), look(0), look(10)] == [1, 1, 1, 1, 2]
    finally:
        logging.getLogger("trainer.watchdog").removeHandler(said)
