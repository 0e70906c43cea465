"""Training processes that are killed (SIGKILL) at a moment, all of them or first one of several."""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch.multiprocessing as mp

from tests.distributed.ranks import PRELOADED, _rank_main
from tests.trainer.runs import Run, train_runs
from trainer.run_dir import RunDir

MOMENTS = ("step", "saving", "committed", "later")
TIMEOUT = 100.0


@dataclass(frozen=True)
class Kill:
    """When: once `step` was reached. moment: "step": it is told in metrics.jsonl; "saving": a checkpoint from there on
    is being written; "committed": one just became complete; "later": `delay` seconds after the step. first: the rank
    that is killed `delay` seconds before the others; -1 = all at once."""

    step: int
    moment: str
    delay: float = 0.0
    first: int = -1

    @staticmethod
    def draw(random_: random.Random, step: int, world_size: int) -> Kill:
        """Somewhere in the ten steps after `step`."""
        first = random_.choice([-1, random_.randrange(world_size)]) if world_size > 1 else -1
        return Kill(step + random_.randint(1, 10), random_.choice(MOMENTS), random_.uniform(0, 0.05), first)


@dataclass(frozen=True)
class Ending:
    """killed: False where the run came to its end before. torn: checkpoints that were left half written."""

    killed: bool
    torn: tuple[str, ...]


def train_until(kill: Kill | None, run: Run, world_size: int) -> Ending:
    """Train `run` on N processes until they are killed, or to the end. Raises AssertionError with what a rank said
    where one failed by itself."""
    with tempfile.TemporaryDirectory(prefix="killed-") as folder:
        context = mp.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        ranks = [
            context.Process(target=_rank_main, args=(train_runs, rank, world_size, ([run],), folder), daemon=True)
            for rank in range(world_size)
        ]
        reached = (lambda: False) if kill is None else _moment(kill, RunDir(run.run_dir))
        deadline = time.monotonic() + TIMEOUT
        try:
            for rank in ranks:
                rank.start()
            while not reached():
                assert time.monotonic() < deadline, f"{kill} did not come in {TIMEOUT:g} s"
                ended = [rank.exitcode for rank in ranks]
                failed = [path.read_text() for path in Path(folder).glob("error-*")]
                assert not failed, failed[0]
                if None not in ended:
                    assert ended == [0] * world_size
                    return Ending(False, ())
                time.sleep(0.0005)
            if kill is not None and kill.first >= 0:
                ranks[kill.first].kill()
                time.sleep(kill.delay)
        finally:
            for rank in ranks:
                if rank.pid is not None:
                    rank.kill()
            for rank in ranks:
                rank.join()
    return Ending(True, torn(RunDir(run.run_dir)))


def torn(run_dir: RunDir) -> tuple[str, ...]:
    """Checkpoints without COMMIT."""
    return tuple(found.path.name for found in run_dir.step_dirs() if not found.complete)


def _moment(kill: Kill, run_dir: RunDir) -> Callable[[], bool]:
    """Asked every half millisecond. What an earlier attempt left does not count."""
    before = {found.path.name for found in run_dir.step_dirs()}
    told = _told(run_dir)
    since: list[float] = []

    def reached() -> bool:
        if kill.moment in ("step", "later"):
            if told() < kill.step:
                return False
            since.append(time.monotonic())
            return kill.moment == "step" or time.monotonic() - since[0] >= kill.delay
        found = [f for f in run_dir.step_dirs() if f.step >= kill.step and f.path.name not in before]
        return any(f.complete == (kill.moment == "committed") for f in found)

    return reached


def _told(run_dir: RunDir) -> Callable[[], int]:
    """The newest step in metrics.jsonl, once it has been written to anew: a resumed run takes lines back first."""
    size = run_dir.metrics.stat().st_size if run_dir.metrics.exists() else 0
    resumed = not size

    def newest() -> int:
        nonlocal resumed
        if not run_dir.metrics.exists():
            return 0
        lines = run_dir.metrics.read_bytes().splitlines()
        last = json.loads(lines[-1]) if lines and lines[-1].endswith(b"}") else {}
        resumed |= last.get("event") == "resumed" or run_dir.metrics.stat().st_size < size
        return int(last.get("step", 0)) if resumed else 0

    return newest
