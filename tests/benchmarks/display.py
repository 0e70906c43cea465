"""What the live display costs: CPU time of a drawing, of a call on the thread that trains, and of the steps of a thread
beside it.

Steps are a fixed amount of Python and of small matrix products in the main thread, as a training step is to the
interpreter's lock; with a display beside them, and with lines alone. Figures are CPU seconds of the main thread: what
others do on the machine does not count. The display's own thread is counted apart.
"""

from __future__ import annotations

import contextlib
import os
import pty
import sys
import threading
import time
from collections.abc import Callable

import numpy as np
from rich.console import Console

from tests.benchmarks.harness import finish, in_turn, prepare_process, ratio, show, spread, table
from trainer.lines import Line
from trainer.telemetry.drawing import Drawing
from trainer.telemetry.live_state import LiveState
from trainer.telemetry.screen import DRAW_SECONDS, Display
from trainer.telemetry.updates import At, Begun, Evaluated, Saved, Scores, Trained

WIDTH, TASKS = 120, ("click", "purchase")
SCORES = dict.fromkeys(TASKS, Scores(0.87, 0.74, 1.01))
MATRIX = np.random.default_rng(1).standard_normal((96, 96))


def trained(step: int) -> Trained:
    return Trained(step, 32 * step, 0, "2026-11-14", 0.5, 2e3, 5e2, 0.06, 0.01, 60.0, 9.0, SCORES, memory_bytes=10**9)


def step() -> float:
    """About a millisecond."""
    found, value = 0, MATRIX
    for number in range(20_000):
        found += number & 7
    for _ in range(6):
        value = np.tanh(value @ MATRIX)
    return found + float(value[0, 0])


class Terminal:
    """A pseudo-terminal that somebody reads."""

    def __init__(self) -> None:
        master, slave = pty.openpty()
        self.console = Console(
            file=os.fdopen(slave, "w"), force_terminal=True, width=WIDTH, height=40, color_system="256"
        )
        threading.Thread(target=self._read, args=(master,), daemon=True).start()

    @staticmethod
    def _read(master: int) -> None:
        with contextlib.suppress(OSError):  # the other end is closed
            while os.read(master, 65_536):
                pass


def steps_beside(seconds: float, display: Display | None) -> float:
    """CPU milliseconds of a step; a log every 20 steps."""
    number, at = 0, [0]
    if display is not None:
        display.show(Begun(0, 0, 100_000, 32))
        display.follow(lambda: At(at[0], "step", 0.0))
    began, cpu = time.monotonic(), time.thread_time()
    while time.monotonic() - began < seconds:
        step()
        number += 1
        at[0] = number
        if number % 20 == 0 and display is not None:
            display.show(trained(number))
            display.line(Line(f"step {number} · 1.9 k ex/s · loss .412 · click NE .873 AUC .742 cal 1.01"))
    spent = (time.thread_time() - cpu) / number
    if display is not None:
        display.close()
    return 1e3 * spent


def microseconds(call: Callable[[], object], times: int) -> float:
    began = time.thread_time()
    for _ in range(times):
        call()
    return 1e6 * (time.thread_time() - began) / times


def main() -> None:
    prepare_process()
    quick = "--quick" in sys.argv
    rounds, seconds = (3, 2.0) if quick else (7, 6.0)
    show("display", {"columns": WIDTH, "tasks": len(TASKS), "drawings a second": 1 / DRAW_SECONDS, "rounds": rounds})
    terminal = Terminal()
    found = in_turn(
        {
            "with the display": lambda: steps_beside(seconds, Display("runs/x", terminal.console)),
            "without": lambda: steps_beside(seconds, None),
        },
        rounds,
    )
    display, record = Display("runs/x", terminal.console), trained(20)
    call = microseconds(lambda: display.show(record), 2_000)
    display.close()
    state = LiveState("runs/x")
    for item in (Begun(0, 0, 100_000, 32), record, Evaluated(20, "2026-11-15", SCORES), Saved(20, 10**6, 0.3)):
        state.take(item, time.monotonic())
    drawing = Drawing(state, terminal.console)
    draw = microseconds(drawing.draw, 100 if quick else 500)
    drawing.stop()
    rows = [[f"a step {name}", spread([1e3 * value for value in values])] for name, values in found.items()]
    rows += [["a drawing", f"{draw:,.0f}"], ["a call on the thread that trains", f"{call:.1f}"]]
    table(["CPU microseconds", "median (range)"], rows)
    ratios = {
        "step_with_over_without": ratio(found["with the display"], found["without"]),
        "share_of_a_core": draw * 1e-6 / DRAW_SECONDS,
    }
    finish("display", ratios, 1)


if __name__ == "__main__":
    main()
