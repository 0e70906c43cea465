"""Where a command speaks while it runs: plain lines, or the same lines above a live display at the bottom of the
terminal."""

from __future__ import annotations

import contextlib
import math
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, TextIO

from trainer.lines import Folding, Line
from trainer.stop import say_at_once
from trainer.telemetry.updates import At, Look, Update

if TYPE_CHECKING:
    from rich.console import Console

TICK_SECONDS = 0.25
DRAW_SECONDS = 0.5  # between two drawings that no line calls for
Live = Literal["auto", "on", "off"]


def wants_display(live: Live, stream: TextIO, env: Mapping[str, str]) -> tuple[bool, str]:
    """Whether a live display is drawn on `stream`, and where "on" cannot be had, why."""
    if live == "off":
        return False, ""
    if not stream.isatty():
        return False, "the error output is no terminal" if live == "on" else ""
    if env.get("TERM", "") in ("dumb", "unknown"):
        return False, f"TERM is '{env['TERM']}'" if live == "on" else ""
    return live == "on" or env.get("CI", "").lower() in ("", "0", "false"), ""


class Plain:
    """Lines on stderr. Those of other ranks a moment later, the same ones folded; nothing of what a display shows."""

    def __init__(self) -> None:
        self._folding = Folding(socket.gethostname())
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def line(self, line: Line) -> None:
        with self._lock:
            if not line.is_foreign:
                self._folding.first_said(line, time.monotonic())
                print(line.plain(), file=sys.stderr, flush=True)
                return
            self._folding.add(line, time.monotonic())
            if self._thread is None and not self._over.is_set():
                self._thread = threading.Thread(target=self._watch, name="lines", daemon=True)
                self._thread.start()
        if self._over.is_set():
            self._say(everything=True)

    def show(self, update: Update) -> None:
        """The log lines say it."""

    def follow(self, look: Look) -> None:
        """The log lines say it."""

    def notice(self, text: str) -> None:
        """From a signal handler."""
        say_at_once(text)

    def close(self) -> None:
        """Everything is said. May be called twice; lines still come through afterwards."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._say(everything=True)

    def _watch(self) -> None:
        while not self._over.wait(TICK_SECONDS):
            self._say()

    def _say(self, everything: bool = False) -> None:
        with self._lock:
            for line in self._folding.due(time.monotonic(), everything):
                print(line.plain(), file=sys.stderr, flush=True)


class Display:
    """Lines scroll above a few that are drawn anew twice a second, by a thread of its own: callers only put things into
    a queue, which is safe in a signal handler too. close() takes the display away and leaves the lines.

    title: of the run. console: of rich, on stderr by default.
    """

    def __init__(self, title: str = "", console: Console | None = None) -> None:
        from rich.console import Console  # noqa: PLC0415 - where there is no terminal, nobody waits for it

        from trainer.telemetry.drawing import Drawing  # noqa: PLC0415
        from trainer.telemetry.live_state import LiveState  # noqa: PLC0415

        self.state = LiveState(title)
        self._drawing = Drawing(self.state, console or Console(stderr=True, highlight=False))
        self._folding = Folding(socket.gethostname())
        self._queue: queue.SimpleQueue[Line | Update] = queue.SimpleQueue()
        self._look: Look = lambda: None
        self._drawn, self._drawn_when = "", -math.inf
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="display", daemon=True)
        self._thread.start()

    def line(self, line: Line) -> None:
        if self._over.is_set():  # after the end: there is nothing to draw above
            print(line.plain(), file=sys.stderr, flush=True)
        else:
            self._queue.put(line)

    def show(self, update: Update) -> None:
        self._queue.put(update)

    def follow(self, look: Look) -> None:
        self._look = look

    def notice(self, text: str) -> None:
        """From a signal handler."""
        self._queue.put(Line(text))

    def close(self) -> None:
        """May be called twice."""
        if not self._over.is_set():
            self._over.set()
            self._thread.join()
            self._tick(last=True)
            self._drawing.stop()

    def _run(self) -> None:
        while not self._over.wait(TICK_SECONDS):
            self._tick()

    def _tick(self, last: bool = False) -> None:
        now = time.monotonic()
        lines: list[Line] = []
        with contextlib.suppress(queue.Empty):
            while True:
                item = self._queue.get_nowait()
                if isinstance(item, Line):
                    if item.is_foreign:
                        self._folding.add(item, now)
                    else:
                        self._folding.first_said(item, now)
                        lines.append(item)
                else:
                    self.state.take(item, now)
        lines += self._folding.due(now, everything=last)
        for line in lines:
            self.state.take(line, now)
        self.state.at = self._where()
        if lines or now - self._drawn_when >= DRAW_SECONDS:
            self._drawn_when = now
            self._drawing.draw(lines)

    def _where(self) -> At | None:
        try:
            found = self._look()
        except Exception:  # of a process group or a Ray that is going down: a display ends no run
            found = None
        return found if found is not None else self.state.at


def open_screen(live: Live, title: str) -> Plain | Display:
    """What fits where stderr goes to."""
    wanted, why_not = wants_display(live, sys.stderr, os.environ)
    if wanted:
        return Display(title)
    screen = Plain()
    if why_not:
        screen.line(Line(f"no live display: {why_not} → one line a log instead (telemetry.live = 'on')"))
    return screen
