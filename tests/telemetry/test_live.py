"""The live display: what it says, that it fits, that lines above it stay whole, and that it goes without a trace."""

from __future__ import annotations

import io
import logging
import os
import threading
import time
from collections.abc import Callable

import pytest
from rich.console import Console

from tests.telemetry.terminal import Terminal
from trainer import logs
from trainer.lines import HOLD_SECONDS, Folding, Line, spoken_ranks
from trainer.telemetry import screen as screens
from trainer.telemetry.console import begin_line
from trainer.telemetry.drawing import Drawing
from trainer.telemetry.frame import Frame, sparks
from trainer.telemetry.live_state import LiveState
from trainer.telemetry.screen import Display, Plain, wants_display
from trainer.telemetry.updates import At, Begun, Evaluated, Phase, Saved, Scores, Trained

NOW = 110.0
TASKS = {"click": Scores(0.982, 0.594, 1.0), "purchase": Scores(0.977, None, 1.09)}
WARNING = Line("3 rows of part-0.parquet are bad and were set aside: label 7 of 'click' is neither 0 nor 1", 30)


def trained(step: int, loss: float) -> Trained:
    return Trained(step, 32 * step, 0, "2026-11-14", loss, 2_100, 545, 0.0587, 0.01, 20.0, 40.0, TASKS)


def busy_state() -> LiveState:
    state = LiveState("runs/quick")
    state.take(Begun(0, 0, 510, 32), 100.0)
    for step in (20, 40, 60):
        state.take(trained(step, 1.0 - step / 100), 105.0)
    state.at = At(71, "step", 0.1)
    return state


def drawn(state: LiveState, width: int = 110, height: int = 30) -> list[str]:
    console = Console(file=io.StringIO(), force_terminal=True, color_system=None, width=width, height=height)
    with console.capture() as captured:
        console.print(Frame(state, lambda: NOW))
    return captured.get().splitlines()


def test_what_goes_on_is_said_before_the_first_step() -> None:
    state = LiveState("runs/quick")
    state.take(Phase("starting Ray"), 98.0)
    assert "starting Ray · 12 s" in drawn(state)[0]
    state.take(Begun(0, 0, 510, 32), 100.0)
    state.at = At(1, "first step", 4.0)
    first = drawn(state)
    assert "the first step" in first[0]
    assert "step 0 of 510   rows 0 of about 16 320" in first[2]


def test_all_of_a_run_is_in_view() -> None:
    state = busy_state()
    state.take(Evaluated(60, "2026-11-15", {"click": Scores(0.966, 0.631, 1.07, 0.59)}), 106.0)
    state.take(Saved(60, 1_234_567, 0.3), 107.0)
    for _ in range(3):
        state.take(WARNING, 108.0)
    text = "\n".join(lines := drawn(state))
    assert "training" in lines[0]
    assert "runs/quick" in lines[0]
    for said in (
        "17 % ━",
        "step 70 of 401",
        "rows 2 240 of about 12 829",  # between two logs the rows go on with the steps
        "15 s left",
        "loss .400 █▄▁",
        "examples/s 2.1 k",
        "data wait 1 %",
        "checkpoint 3 s ago",
        "click      AUC .594   NE .982   cal 1.00   evaluated at step 60   AUC .631   NE .966   GAUC .590",
        "purchase   AUC –   NE .977   cal 1.09",
        "3 rows of part-0.parquet are bad",
        "×3",
    ):
        assert said in text, f"{said} in\n{text}"


def test_a_standing_step_says_for_how_long() -> None:
    state = busy_state()
    state.at = At(71, "data_wait", 15.0)
    assert "training · 15 s" in drawn(state)[0]
    state.at = At(70, "evaluation", 0.1)
    assert "evaluating ─" in drawn(state)[0]
    state.at = At(70, "evaluation", 0.1, 12, 56)
    assert "evaluating, batch 12 of about 56 ─" in drawn(state)[0]


@pytest.mark.parametrize("height", [8, 12, 24])
@pytest.mark.parametrize("width", [24, 40, 60, 80, 200])
def test_it_fits_the_terminal(width: int, height: int) -> None:
    state = busy_state()
    state.take(WARNING, 108.0)
    lines = drawn(state, width, height)
    assert max(map(len, lines)) <= width
    assert 2 <= len(lines) < height
    text = "\n".join(lines)
    assert "training" in text
    if height > 12:
        assert "step 70 of 401" in text
        assert "AUC .594" in text
        assert "! " in text


def test_a_warning_stays_in_view_when_news_follow() -> None:
    state = busy_state()
    state.take(WARNING, 107.0)
    for step in range(10):
        state.take(Line(f"another {step}", logging.WARNING), 108.0)
        state.take(Saved(step, 10, 0.1), 108.0)
    notices = [line for line in drawn(state) if line[0] in "!·"]
    assert len(notices) == 3
    assert any("another 9" in notice for notice in notices)
    assert any("checkpoint of step 9" in notice for notice in notices)
    assert len(state.notices) <= 8


def test_sparks() -> None:
    assert sparks([1.0]) == ""
    assert sparks([2.0, 1.0, 1.5, 2.0]) == "█▁▅█"
    assert sparks([1.0, 1.0]) == "▁▁"


class Pty:
    """A rich console over a Terminal."""

    def __init__(self, width: int) -> None:
        self.terminal = Terminal(width)
        self._size = [width]
        outer = self

        class Writing(io.StringIO):
            def write(self, text: str) -> int:
                outer.terminal.feed(text)
                return len(text)

        self.console = Console(file=Writing(), force_terminal=True, color_system="standard", width=width, height=24)

    def resize(self, width: int) -> None:
        self.terminal.resize(width)
        self.console.width = width


def test_lines_scroll_above_and_nothing_is_left_of_the_display() -> None:
    pty = Pty(60)
    state = busy_state()
    drawing = Drawing(state, pty.console)
    said = [f"line {k} {'x' * 20 * k}.".strip() for k in range(6)]
    for line in said:
        drawing.draw([Line(line)])
        drawing.draw()
        assert pty.terminal.cursor_is_shown  # a killed process leaves it so
        assert "step 70 of 401" in "\n".join(pty.terminal.screen)
    drawing.stop()
    assert [line for line in pty.terminal.lines if line] == said
    assert len([row for row in pty.terminal.rows if row.startswith("──")]) == 0


@pytest.mark.parametrize("widths", [(110, 60), (60, 110), (110, 40, 90)])
def test_a_terminal_that_is_resized_shows_one_display(widths: tuple[int, ...]) -> None:
    pty = Pty(widths[0])
    drawing = Drawing(busy_state(), pty.console)
    drawing.draw([Line("before " + "y" * 80)])
    for width in widths[1:]:
        pty.resize(width)
        drawing.draw()
        text = "\n".join(pty.terminal.rows)
        assert text.count("training") == 1, text
        assert text.count("purchase") == 1, text
    drawing.draw([Line("after")])
    drawing.stop()
    assert [line for line in pty.terminal.lines if line] == ["before " + "y" * 80, "after"]


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], bool]], None]:
    monkeypatch.setattr(screens, "TICK_SECONDS", 0.01)
    monkeypatch.setattr(screens, "DRAW_SECONDS", 0.02)

    def until(reached: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 10
        while not reached():
            assert time.monotonic() < deadline
            threading.Event().wait(0.01)

    return until


def test_a_display_draws_by_itself_and_follows(waiting: Callable[[Callable[[], bool]], None]) -> None:
    pty = Pty(100)
    display = Display("runs/x", pty.console)
    steps = iter(range(1, 10_000))
    display.show(Begun(0, 0, 9_999, 32))
    display.follow(lambda: At(next(steps), "step", 0.0))
    seen: set[str] = set()

    def moved() -> bool:
        seen.update(row for row in pty.terminal.screen if row.startswith("step "))
        return len(seen) >= 5

    waiting(moved)
    display.line(Line("hello"))
    display.notice("SIGINT: saving")
    display.close()
    display.close()
    assert [line for line in pty.terminal.lines if line] == ["hello", "SIGINT: saving"]


def test_a_look_that_fails_ends_no_display(waiting: Callable[[Callable[[], bool]], None]) -> None:
    pty = Pty(100)
    display = Display("runs/x", pty.console)
    asked = threading.Event()

    def look() -> At:
        asked.set()
        raise RuntimeError("the actor is gone")

    display.follow(look)
    waiting(asked.is_set)
    display.line(Line("still here"))
    display.close()
    assert "still here" in pty.terminal.lines


def test_the_same_of_many_ranks_is_said_once() -> None:
    folding = Folding("here")
    folding.first_said(Line("disk nearly full", logging.WARNING), 0.0)
    for rank in (1, 2, 3, 7):
        folding.add(Line("disk nearly full", logging.WARNING, (rank,), "here"), 0.1)
        folding.add(Line(f"rank {rank} retries", logging.WARNING, (rank,), "there"), 0.1)
    folding.add(Line("alone", logging.ERROR, (5,), "there"), 0.2)
    assert list(folding.due(0.3)) == []
    said = [line.plain() for line in folding.due(0.2 + HOLD_SECONDS)]
    assert said == [
        "ranks 1–3, 7: warning: the same: disk nearly full",
        "ranks 1–3, 7 (there): warning: rank 1 retries",
        "rank 5 (there): error: alone",
    ]
    assert folding.is_empty
    assert spoken_ranks([4]) == "rank 4"
    assert spoken_ranks([0, 1, 4, 5, 6]) == "ranks 0, 1, 4–6"


def test_plain_lines_of_this_rank_come_at_once_and_of_others_folded(capsys: pytest.CaptureFixture[str]) -> None:
    plain = Plain()
    plain.line(Line("loading"))
    assert capsys.readouterr().err == "loading\n"
    for rank in (1, 2):
        plain.line(Line("slow disk", logging.WARNING, (rank,), ""))
    plain.close()
    assert capsys.readouterr().err == "ranks 1, 2: warning: slow disk\n"
    plain.line(Line("late", logging.WARNING, (1,)))
    assert capsys.readouterr().err == "rank 1: warning: late\n"


def test_log_records_arrive_as_lines() -> None:
    taken: list[Line] = []
    logs.to_lines(taken.append, logging.WARNING, 3, "far")
    try:
        logging.getLogger("trainer.somewhere").info("not this")
        logging.getLogger("pipelines.somewhere").warning("%d rows", 7)
    finally:
        for package in logs.PACKAGES:
            logger = logging.getLogger(package)
            logger.handlers.clear()
            logger.propagate = True
            logger.setLevel(logging.NOTSET)
    assert taken == [Line("7 rows", logging.WARNING, (3,), "far")]
    assert taken[0].plain() == "rank 3 (far): warning: 7 rows"


class Stream(io.StringIO):
    def __init__(self, is_terminal: bool) -> None:
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


@pytest.mark.parametrize(
    ("live", "terminal", "env", "wanted"),
    [
        ("auto", True, {"TERM": "xterm"}, True),
        ("auto", False, {"TERM": "xterm"}, False),
        ("auto", True, {"TERM": "dumb"}, False),
        ("auto", True, {"CI": "true"}, False),
        ("auto", True, {"CI": "false"}, True),
        ("auto", True, {"NO_COLOR": "1"}, True),
        ("on", True, {"CI": "true"}, True),
        ("on", False, {}, False),
        ("on", True, {"TERM": "dumb"}, False),
        ("off", True, {"TERM": "xterm"}, False),
    ],
)
def test_when_there_is_a_display(live: screens.Live, terminal: bool, env: dict[str, str], wanted: bool) -> None:
    found, why_not = wants_display(live, Stream(terminal), env)
    assert found == wanted
    assert bool(why_not) == (live == "on" and not wanted)


def test_where_none_can_be_drawn_it_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    screens.open_screen("on", "runs/x").close()
    said = capsys.readouterr().err
    assert "no live display: the error output is no terminal" in said
    assert "\x1b" not in said
    assert os.environ.get("TERM") is None or said.count("\n") == 1


def test_a_run_says_what_it_is_about_to_train() -> None:
    days = ("2026-11-13", "2026-11-14", "2026-11-15")
    assert begin_line(Begun(0, 0, 102, 32, days[:1])) == "to train: steps 1–102, of 32 rows each · segment 2026-11-13"
    assert begin_line(Begun(100, 3_200, 5, 32, days, 2)) == (
        "to train: steps 101–105, of 32 rows each · segments 2026-11-13 … 2026-11-15 (3), 2 epochs"
    )
    assert begin_line(Begun(102, 3_264, 0, 32, days)) == "nothing is left to train after step 102"
