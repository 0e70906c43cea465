"""Under torchrun every rank has the same terminal, or another host's: what the others have to say is sent to the first
one, through the store that the ranks met by, and said there with their numbers.

A line is lost by nobody: without a store, or with one that has gone, a rank says it itself.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from trainer.lines import Line
from trainer.telemetry.updates import Look, Screen, Update

if TYPE_CHECKING:
    from trainer.runtime import Runtime

log = logging.getLogger(__name__)
TURN_SECONDS = 0.5
MOST_LINES = 50  # a turn, of one rank
LEAVING_SECONDS = 1.0  # the first rank waits for the others' last lines
SAID, GONE = "said", "gone"


class Relay:
    """Where a rank speaks that has no terminal of its own. rank: its number; host: its host."""

    def __init__(self, rank: int, host: str) -> None:
        self._rank, self._host = rank, host
        self._lock = threading.Lock()
        self._waiting: list[Line] = []
        self._on_the_way: list[Line] = []
        self._dropped = 0
        self._store: Any = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lines", daemon=True)

    def line(self, line: Line) -> None:
        with self._lock:
            if self._store is None:
                print(line.plain(), file=sys.stderr, flush=True)
            elif len(self._waiting) < MOST_LINES:
                self._waiting.append(line)
            else:
                self._dropped += 1

    def show(self, update: Update) -> None:
        """The first rank shows it."""

    def follow(self, look: Look) -> None:
        """The first rank shows it."""

    def notice(self, text: str) -> None:
        """The first rank says it: a terminal's Ctrl-C reaches all."""

    def close(self) -> None:
        """May be called without `join`."""

    def join(self, store: Any) -> None:
        """store: a connection of its own."""
        self._store = store
        self._thread.start()

    def leave(self) -> None:
        """What is left is sent, unless the store keeps this rank waiting: then it is said here."""
        self._over.set()
        self._thread.join(LEAVING_SECONDS)
        with self._lock:
            self._store = None
            for line in [*self._on_the_way, *self._waiting]:
                print(line.plain(), file=sys.stderr, flush=True)

    def _run(self) -> None:
        store, over = self._store, False
        while not over:
            over = self._over.wait(TURN_SECONDS)
            self._send(store, over)

    def _send(self, store: Any, last: bool) -> None:
        with self._lock:
            lines, self._waiting = self._waiting, []
            dropped, self._dropped = self._dropped, 0
            if dropped:
                text = f"{dropped} more lines within {TURN_SECONDS:g} s were left out"
                lines.append(Line(text, logging.WARNING, (self._rank,), self._host))
            self._on_the_way = lines
        try:
            if lines:
                said = [[line.text, line.level, self._rank, line.host] for line in lines]
                store.set(f"{SAID}/{store.add(SAID, 1)}", json.dumps(said))
            if last:
                store.add(GONE, 1)
        except RuntimeError:  # the store's host is gone
            for line in lines:
                print(line.plain(), file=sys.stderr, flush=True)
        with self._lock:
            self._on_the_way = []


class _Receiver:
    """On the first rank: hands the others' lines to its screen."""

    def __init__(self, screen: Screen, store: Any, others: int) -> None:
        self._screen, self._store, self._others = screen, store, others
        self._heard = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lines", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Waits a moment for the others' last lines."""
        self._over.set()
        self._thread.join(2 * LEAVING_SECONDS)

    def _run(self) -> None:
        while not self._over.wait(TURN_SECONDS):
            with contextlib.suppress(RuntimeError):  # the watchdog says that the store does not answer
                self._receive()
        deadline = time.monotonic() + LEAVING_SECONDS
        with contextlib.suppress(RuntimeError):
            while True:
                all_left = self._store.add(GONE, 0) >= self._others
                self._receive()
                if all_left or time.monotonic() >= deadline:
                    return
                time.sleep(TURN_SECONDS / 10)

    def _receive(self) -> None:
        sent = self._store.add(SAID, 0)
        while self._heard < sent and self._store.check([key := f"{SAID}/{self._heard + 1}"]):
            said = json.loads(self._store.get(key))
            self._store.delete_key(key)
            self._heard += 1
            for text, level, rank, host in said:
                self._screen.line(Line(text, level, (rank,), host))


@contextmanager
def joined(screen: Screen | None, runtime: Runtime) -> Iterator[None]:
    """While inside, lines of the other ranks come out at the first one's screen; nothing is done where they have
    another way there (screen is neither theirs nor torchrun's first rank's)."""
    if runtime.world_size == 1 or screen is None:
        yield
        return
    import torch.distributed as dist  # noqa: PLC0415 - the command makes a Relay before torch is there

    met_by: Any = dist.distributed_c10d._get_default_store()
    prefixed: Any = dist.PrefixStore  # type: ignore[attr-defined]
    store = prefixed("tokenformer-lines", met_by.clone())
    if isinstance(screen, Relay):
        screen.join(store)
        try:
            yield
        finally:
            screen.leave()
        return
    receiver = _Receiver(screen, store, runtime.world_size - 1)
    try:
        yield
    finally:
        receiver.close()
