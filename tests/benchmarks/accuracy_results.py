"""The results file: one JSON line for each finished run, never half a one."""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trainer.run_dir import write_atomic

Figures = dict[str, Any]


class Results:
    """What is finished, by (hash of the settings, seed). Of two lines of one key the later one stands."""

    def __init__(self, lines: list[Figures]) -> None:
        self._by_key = {(line["hash"], line["seed"]): line for line in lines}
        self.lines = list(self._by_key.values())

    def get(self, settings: str, seed: int) -> Figures | None:
        return self._by_key.get((settings, seed))

    def held_out_auc(self, settings: str, seed: int) -> float:
        """Of a run that is done."""
        return float(self._by_key[settings, seed]["held_out"]["auc"])


def load(path: Path) -> Results:
    """Lines that are whole; a tail without its end, of another program's making, is passed over."""
    if not path.exists():
        return Results([])
    whole = path.read_text(encoding="utf-8").rpartition("\n")[0]
    return Results([json.loads(line) for line in whole.splitlines() if line])


def add(path: Path, line: Mapping[str, Any], lock: Path) -> None:
    """Adds a line, durably: the file is replaced by one that has it, so it is there or it is not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with held(lock):
        lines = [*load(path).lines, dict(line)]
        write_atomic(path, "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in lines))


class GivenUpError(Exception):
    """Waiting for a lock has no more point."""


@contextmanager
def held(lock: Path, give_up: Callable[[], bool] = lambda: False) -> Iterator[int]:
    """Waits for a lock that ends with its holders, also when they are killed. Yields its descriptor: a process that is
    given it holds the lock as well. Raises GivenUpError once `give_up` says so."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if give_up():
                    raise GivenUpError from None
                time.sleep(0.1)
        yield file.fileno()
