"""`tokenformer train` on N ranks, with the environment that torchrun would give them, in processes forked from one that
has torch imported already: a start costs a second or two instead of ten, and a signal can be sent to any of them."""

from __future__ import annotations

import contextlib
import multiprocessing as mp
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any

# Imported once, by the server that every rank is forked from.
PRELOADED = ["torch", "torchrec", "torchrec.distributed.model_parallel", "trainer.cli", "trainer.worker"]
TRAIN = ("train", "--config", "run.toml", "--run-dir", "run", "--resume", "auto")
CLOCK_JUMPS = signal.SIGUSR2
POLL_SECONDS = 0.001
START_SECONDS = 120.0


class StuckError(Exception):
    """Ranks that had to end, or to come to a moment, did not."""


@dataclass(frozen=True)
class Left:
    """codes: of each rank's process, negative where a signal killed it. said: by each, on stdout and stderr."""

    codes: tuple[int, ...]
    said: tuple[str, ...]

    @property
    def errors(self) -> list[str]:
        """The lines that say what was wrong, each once."""
        lines = (line for said in self.said for line in said.splitlines())
        return list(dict.fromkeys(line for line in lines if "error: " in line))

    @property
    def unforeseen(self) -> list[str]:
        """What no user should ever see: our own name for a bug, or a traceback."""
        marks = ("this is a bug", "Traceback (most recent call last)", "terminate called", "Fatal Python error")
        return [mark for mark in marks if any(mark in said for said in self.said)]


class Ranks:
    """Under way from the start. folder: with run.toml. jump: seconds that the clock goes forward at CLOCK_JUMPS."""

    def __init__(self, folder: Path, world_size: int, *arguments: str, name: str = "start", jump: float = 0.0) -> None:
        context = mp.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self._files = [folder / f"{name}-rank-{rank}.txt" for rank in range(world_size)]
        port = _free_port()
        self.processes = [
            context.Process(
                target=_rank_main, args=(rank, world_size, port, folder, self._files[rank], (*TRAIN, *arguments), jump)
            )
            for rank in range(world_size)
        ]
        for process in self.processes:
            process.start()

    @property
    def pids(self) -> list[int]:
        """Of the ranks, in order."""
        return [process.pid for process in self.processes if process.pid is not None]

    def until(self, reached: Callable[[], bool], seconds: float = START_SECONDS) -> bool:
        """True once it is reached, False where a rank ended before. Raises StuckError after so many seconds."""
        deadline = time.monotonic() + seconds
        while not reached():
            if any(process.exitcode is not None for process in self.processes):
                return False
            if time.monotonic() > deadline:
                raise StuckError(f"its moment did not come in {seconds:g} s: {self.tail()}")
            time.sleep(POLL_SECONDS)
        return True

    def send(self, number: signal.Signals, ranks: list[int] | None = None) -> None:
        """To these ranks, or to all; one that has ended is left alone."""
        for rank in range(len(self.processes)) if ranks is None else ranks:
            if self.processes[rank].exitcode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pids[rank], number)

    def ended(self, seconds: float, without: int = -1) -> Left:
        """When all have ended, or all but one, which is then killed. Raises StuckError."""
        deadline = time.monotonic() + seconds
        waited: dict[Any, int] = {p.sentinel: r for r, p in enumerate(self.processes) if r != without}
        while waited:
            over = connection.wait(list(waited), max(0.0, deadline - time.monotonic()))
            if not over:
                raise StuckError(f"ranks {sorted(waited.values())} had not ended after {seconds:g} s: {self.tail()}")
            for sentinel in over:
                waited.pop(sentinel)
        self.kill()
        codes = tuple(process.exitcode if process.exitcode is not None else 0 for process in self.processes)
        return Left(codes, tuple(file.read_text(errors="replace") if file.exists() else "" for file in self._files))

    def kill(self) -> None:
        """Whatever is left of them."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()

    def tail(self) -> str:
        """The last words of each, for an error."""
        last = [(file.read_text(errors="replace").splitlines() or [""])[-1] for file in self._files if file.exists()]
        return " | ".join(last)


@contextlib.contextmanager
def started(folder: Path, world_size: int, *arguments: str, **options: Any) -> Iterator[Ranks]:
    """Nothing of it outlives the block."""
    ranks = Ranks(folder, world_size, *arguments, **options)
    try:
        yield ranks
    finally:
        ranks.kill()


def _rank_main(
    rank: int, world_size: int, port: int, folder: Path, said: Path, arguments: tuple[str, ...], jump: float
) -> None:
    os.chdir(folder)
    descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    if any(name == "lo" for _, name in socket.if_nameindex()):  # the host's own name need not resolve
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    numbers = {"RANK": rank, "WORLD_SIZE": world_size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world_size}
    os.environ.update({name: str(value) for name, value in numbers.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), CUDA_VISIBLE_DEVICES="", COLUMNS="200")
    signal.signal(CLOCK_JUMPS, lambda number, frame: _jump(jump))
    from trainer.cli import main

    main(list(arguments))


def _jump(seconds: float) -> None:
    """The wall clock, as all Python code of this process asks for it."""
    true_time, true_ns = time.time, time.time_ns
    time.time = lambda: true_time() + seconds
    time.time_ns = lambda: true_ns() + int(seconds * 1e9)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
