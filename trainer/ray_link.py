"""The thread between the command and its Ray workers: a stop request goes in; lines of all ranks, and what rank 0 shows
and returns, come out.

One tiny actor; a background thread in each worker talks to it a few times a second, so that the training loop only ever
reads an attribute.
"""

from __future__ import annotations

import io
import sys
import threading
from typing import Any, Self

import ray

from trainer.lines import Line
from trainer.stalls import Report
from trainer.telemetry.updates import At, Look, Update

POLL_SECONDS = 0.2
Message = str | Line | Update  # a str was printed


class Link:
    """The actor's state. Calls are ordered and short."""

    def __init__(self) -> None:
        self._stop = False
        self._messages: list[Message] = []
        self._at: At | None = None
        self._result: dict[str, Any] | None = None
        self._reports: dict[int, Report] = {}

    def request_stop(self) -> None:
        """From the command: somebody pressed Ctrl-C."""
        self._stop = True

    def exchange(self, messages: list[Message], report: Report | None = None, at: At | None = None) -> bool:
        """From a worker: what it said since, and where it is; answers whether to stop."""
        self._messages += messages
        self._at = at or self._at
        if report is not None:
            self._reports[report.rank] = report
        return self._stop

    def reports(self) -> dict[int, Report]:
        """To the command: where each rank last was."""
        return self._reports

    def take(self) -> tuple[list[Message], At | None]:
        """To the command: each message once, and where rank 0's training thread is."""
        messages, self._messages = self._messages, []
        return messages, self._at

    def finish(self, result: dict[str, Any] | None) -> None:
        """From rank 0: what `run_worker` returned."""
        self._result = result

    def result(self) -> dict[str, Any] | None:
        """To the command, after the end."""
        return self._result


class WorkerEnd(io.TextIOBase):
    """A worker's end of the link: a stop signal for the loop, a screen, and a stream whose lines reach the user's
    terminal."""

    def __init__(self, link: Any) -> None:
        self._link = link
        self._stop = False
        self._partial = ""
        self._messages: list[Message] = []
        self._look: Look = lambda: None
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._talk, name="ray-link", daemon=True)

    def requested(self) -> bool:
        """The job's stop signal."""
        return self._stop

    def writable(self) -> bool:
        """As a text stream says it."""
        return True

    def write(self, text: str) -> int:
        """Collect whole lines; they leave with the next exchange."""
        with self._lock:
            *whole, self._partial = (self._partial + text).split("\n")
            self._messages += whole
        return len(text)

    def line(self, line: Line) -> None:
        """As a screen."""
        with self._lock:
            self._messages.append(line)

    def show(self, update: Update) -> None:
        """As a screen."""
        with self._lock:
            self._messages.append(update)

    def follow(self, look: Look) -> None:
        """As a screen: asked at every exchange."""
        self._look = look

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._thread.join()
        if self._partial:
            self.write("\n")
        self._exchange()  # after the thread: the last lines must not overtake earlier ones

    @staticmethod
    def _report() -> Report | None:
        watchdog = sys.modules.get("trainer.watchdog")  # it imports torch, which this module leaves to the entry
        return watchdog.current_report() if watchdog is not None else None

    def _talk(self) -> None:
        while not self._closing.wait(POLL_SECONDS):
            self._exchange()

    def _exchange(self) -> None:
        with self._lock:
            messages, self._messages = self._messages, []
        try:
            self._stop = ray.get(self._link.exchange.remote(messages, self._report(), self._look()))
        except ray.exceptions.RayActorError:  # the command is gone: so should the run be, but with its checkpoint
            self._stop = True
