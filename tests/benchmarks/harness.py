"""What every benchmark shares: contestants in turn, medians, the machine in words, CPU time, the closing JSON line.

A benchmark prints its shape and a table, and as its last line one JSON object {"benchmark", "ratios", "machine"}.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, TypeVar

from trainer.machine import environment

if TYPE_CHECKING:  # it imports torch, which reads the environment that is prepared here
    from trainer.step_split import StepClock

Figure = TypeVar("Figure")

# glibc gives large blocks back to the kernel at once, and every step then waits for fresh zeroed pages: the noisiest
# part of a CPU step. These settings keep them. OpenMP's threads sleep at a barrier instead of spinning: spinning ones
# take the core from whoever they wait for when anything else runs. Both are read when a process starts.
ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**36),
    "OMP_WAIT_POLICY": "passive",
}


def prepare_process() -> None:
    """Starts this program anew with ENVIRONMENT, so that all contestants, and the processes they start, have the same
    allocator and the same kind of threads; what the user has set stands. Call it first in `main`."""
    if not ENVIRONMENT.keys() <= os.environ.keys():
        os.environ.update(ENVIRONMENT | os.environ)
        os.execv(sys.executable, sys.orig_argv)  # this very program, with its own arguments


def in_turn(contestants: Mapping[str, Callable[[], Figure]], rounds: int) -> dict[str, list[Figure]]:
    """Each contestant's figure of each round. They take turns, every other round backwards, so that a slow minute of
    the machine falls on all of them."""
    figures: dict[str, list[Figure]] = {name: [] for name in contestants}
    for turn in range(rounds):
        for name in list(contestants)[:: 1 if turn % 2 == 0 else -1]:
            figures[name].append(contestants[name]())
    return figures


def parts_entered(clock: StepClock, step: Callable[[], object]) -> int:
    """Parts of the clock that one step enters."""
    count, enter = 0, clock.enter

    def counted(name: str) -> None:
        nonlocal count
        count += 1
        enter(name)

    clock.enter = counted  # type: ignore[method-assign]
    step()
    del clock.enter  # type: ignore[method-assign]
    return count


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Median over the rounds of ours ÷ theirs: neighbours in time are compared with each other."""
    return median(a / b for a, b in zip(ours, theirs, strict=True))


def spread(values: Sequence[float]) -> str:
    """Median and extremes, for a table."""
    return f"{median(values):,.0f} ({min(values):,.0f}–{max(values):,.0f})"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a Markdown table: what a report quotes."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    for row in [header, ["-" * width for width in widths], *rows]:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")
    print(flush=True)


def show(title: str, facts: Mapping[str, Any]) -> None:
    """Prints what is fixed: the shape, the settings."""
    print(f"{title}: " + " · ".join(f"{name} {value}" for name, value in facts.items()), flush=True)


def machine(threads: int) -> dict[str, Any]:
    """What it ran on."""
    settings = {name: os.environ.get(name) for name in ENVIRONMENT}
    return {**environment(), "threads": threads, "environment": settings, "load": round(os.getloadavg()[0], 2)}


def finish(benchmark: str, ratios: Mapping[str, float], threads: int) -> None:
    """The last line."""
    rounded = {name: round(value, 3) if value >= 0.1 else float(f"{value:.3g}") for name, value in ratios.items()}
    print(json.dumps({"benchmark": benchmark, "ratios": rounded, "machine": machine(threads)}), flush=True)


class CpuMeter:
    """`with CpuMeter() as meter: …`; then meter.seconds: CPU time that this process and all its descendants used.

    Looks twice a second, because processes that end meanwhile (Ray's) take their account with them.
    """

    seconds = 0.0

    def __enter__(self) -> CpuMeter:
        self._before = _cpu_of_family()
        self._latest = dict(self._before)
        self._done = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._watcher.join()
        self._latest |= _cpu_of_family()
        self.seconds = sum(used - self._before.get(pid, 0.0) for pid, used in self._latest.items())

    def _watch(self) -> None:
        while not self._done.wait(0.5):
            self._latest |= _cpu_of_family()


def _cpu_of_family() -> dict[int, float]:
    """{process id: CPU seconds so far} of this process and its descendants."""
    ticks: dict[int, int] = {}
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
        pid = int(stat.parent.name)
        children.setdefault(int(fields[1]), []).append(pid)
        ticks[pid] = int(fields[11]) + int(fields[12])  # of its own, user and system
    family = [os.getpid()]
    for pid in family:
        family += children.get(pid, [])
    return {pid: ticks[pid] / os.sysconf("SC_CLK_TCK") for pid in family}
