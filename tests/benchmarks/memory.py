"""What a family of processes holds while something runs."""

from __future__ import annotations

import os
import threading
from pathlib import Path


class MemoryMeter:
    """`with MemoryMeter() as meter: …`; then, in bytes, meter.peak: the most that this process and all its descendants
    held of their own at one time (RssAnon: without files and libraries that they share); meter.idle: the same before;
    meter.largest: the most that one of them grew by; one
    that is new is compared with the largest task process that was there.

    Looks ten times a second. Only Ray's task processes and this one: not its own servers, nor its object store.
    """

    peak = idle = largest = 0

    def __enter__(self) -> MemoryMeter:
        self._before = family_memory()
        self.idle = self.peak = sum(self._before.values())
        self._done = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._watcher.join()

    @property
    def growth(self) -> int:
        """Above what was held before."""
        return self.peak - self.idle

    def _watch(self) -> None:
        while not self._done.wait(0.1):
            now = family_memory()
            self.peak = max(self.peak, sum(now.values()))
            usual = max((held for pid, held in self._before.items() if pid != os.getpid()), default=0)
            self.largest = max([self.largest, *(held - self._before.get(pid, usual) for pid, held in now.items())])


def family_memory() -> dict[int, int]:
    """{process id: bytes of its own} of this process and of Ray's task processes below it."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
        children.setdefault(parent, []).append(int(stat.parent.name))
    family = [os.getpid()]
    for pid in family:
        family += children.get(pid, [])
    held = {pid: _held(pid) for pid in family if pid == os.getpid() or _is_task(pid)}
    return {pid: size for pid, size in held.items() if size}


def _is_task(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::")
    except (FileNotFoundError, ProcessLookupError):
        return False


def _held(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)
