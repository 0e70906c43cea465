"""`python -m trainer VERB` as somebody starts it: real processes, real signals, what they said and what they left."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.pipelines.rows import write_segments
from tests.trainer.runs import tiny_config
from trainer.config import dump_config
from trainer.run_dir import RunDir

ROOT = Path(__file__).parents[2]
# The host's own name need not resolve.
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "2")
POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Ended:
    """code: of the process, negative where a signal killed it."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """The lines that say what was wrong."""
        return [line for line in self.err.splitlines() if line.startswith("error: ")]


class Command:
    """A command under way, in a session of its own; its output goes to files, so that no pipe can fill."""

    def __init__(self, arguments: tuple[str, ...], cwd: Path) -> None:
        self.cwd = cwd
        self._said = {name: cwd / f".{name}" for name in ("out", "err")}
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "80",
            "CUDA_VISIBLE_DEVICES": "",
        }
        with self._said["out"].open("w") as out, self._said["err"].open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, *arguments], cwd=cwd, env=environment, stdout=out, stderr=err, start_new_session=True
            )

    def said(self) -> str:
        """stderr so far."""
        return self._said["err"].read_text()

    def until(self, reached: Callable[[], Any], what: str, timeout: float = 100) -> Any:
        """The first true value of `reached`, which must come while the command runs."""
        deadline = time.monotonic() + timeout
        while not (found := reached()):
            assert self.process.poll() is None, f"ended with {self.process.returncode} before {what}:\n{self.said()}"
            assert time.monotonic() < deadline, f"no {what} after {timeout:g} s:\n{self.said()}"
            time.sleep(POLL_SECONDS)
        return found

    def end(self, number: signal.Signals | None = None, everyone: bool = False, timeout: float = 100) -> Ended:
        """Its end, after a signal if one is given; everyone: to all of its processes, as a terminal's Ctrl-C."""
        if number is not None:
            (os.killpg if everyone else os.kill)(self.process.pid, number)
        code = self.process.wait(timeout)
        return Ended(code, self._said["out"].read_text(), self._said["err"].read_text())


def ranks_under_ray(command: Command) -> list[int]:
    """Process ids of its training processes. Ray Train names them, and they work where the command does."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any("RayTrain" in part for part in process.cmdline()) and process.cwd() == str(command.cwd):
                found.append(process.pid)
    return sorted(found)


@contextlib.contextmanager
def started(cwd: Path, *arguments: str, launcher: tuple[str, ...] = ()) -> Iterator[Command]:
    """`python [launcher] -m trainer ARGUMENTS`; nothing of it outlives the block."""
    command = Command((*launcher, "-m", "trainer", *arguments), cwd)
    try:
        yield command
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(command.process.pid, signal.SIGKILL)
        command.process.wait()


def ran(cwd: Path, *arguments: str, launcher: tuple[str, ...] = (), timeout: float = 100) -> Ended:
    """The same, to its end."""
    with started(cwd, *arguments, launcher=launcher) as command:
        return command.end(timeout=timeout)


def write_run_file(folder: Path, segments: dict[str, list[int]] | None = None, **sections: Any) -> Path:
    """Rows of every kind of column, and the run file of tests.trainer.runs over them, by paths relative to `folder`."""
    write_segments(folder / "rows", segments or {"2026-01-01": [14, 9], "2026-01-02": [11, 1]})
    run_file = folder / "run.toml"
    run_file.write_text(dump_config(tiny_config(Path("rows"), **sections)))
    return run_file


def latest_step(run_dir: Path) -> int:
    """Step of the newest complete checkpoint; 0 where there is none."""
    path = RunDir(run_dir).latest()
    return int(path.name.removeprefix("step_")) if path else 0
