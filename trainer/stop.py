"""Ctrl-C and SIGTERM: the first asks the run to save and leave, a later one ends it at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# torchrun passes a terminal's Ctrl-C on to processes that got it already: within this time it is the same request.
SAME_REQUEST_SECONDS = 2.0
ABORTED = 130  # what a shell expects of a process ended by Ctrl-C


class LocalStop:
    """A stop signal inside one process."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def requested(self) -> bool:
        """True from the first request on."""
        return self._event.is_set()

    def request(self) -> None:
        """Ask the run to end."""
        self._event.set()


class Interrupts:
    """While active, SIGINT and SIGTERM reach `stop` instead of ending the process.

    Until `hand_over` is called there is nothing to save, so a signal raises KeyboardInterrupt in the main thread; from
    then on the first sets the flag, and a later one leaves at once with exit code 130. say: called in the handler.
    """

    def __init__(self, stop: LocalStop, say: Callable[[str], None] | None = None) -> None:
        self._stop = stop
        self._say = say or say_at_once
        self._running = False
        self._first = 0.0
        self._before: dict[signal.Signals, object] = {}

    def hand_over(self) -> None:
        """From here on a run exists that can save itself."""
        self._running = True

    def arm(self) -> None:
        """Install the handlers; again where a library has put its own in their place."""
        for number in SIGNALS:
            before = signal.signal(number, self._handle)
            self._before.setdefault(number, before)

    def __enter__(self) -> Self:
        self.arm()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._running:
            raise KeyboardInterrupt
        if not self._stop.requested():
            self._first = time.monotonic()
            self._stop.request()
            self._say(f"{signal.Signals(number).name}: saving a checkpoint and leaving; once more to leave at once")
        elif time.monotonic() - self._first > SAME_REQUEST_SECONDS:
            say_at_once("left at once: what came after the last checkpoint is lost")
            os._exit(ABORTED)


def say_at_once(line: str) -> None:
    """Straight to the descriptor: a handler may interrupt a print under way, whose buffer is not re-entrant."""
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"\n{line}\n".encode())
