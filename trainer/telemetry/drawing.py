"""Draws the frame at the bottom of a terminal, and lines above it."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Sequence

from rich.console import Console, ConsoleRenderable, Group
from rich.control import Control
from rich.live import Live
from rich.segment import ControlType
from rich.text import Text

from trainer.lines import Line
from trainer.telemetry.frame import Frame
from trainer.telemetry.live_state import LiveState

STYLES = ((logging.ERROR, "bold red"), (logging.WARNING, "yellow"))


class Drawing:
    """console: a terminal. What the process prints meanwhile comes above the frame as well."""

    def __init__(self, state: LiveState, console: Console) -> None:
        self._console = console
        self._frame = Frame(state)
        self._live = _Live(self._frame, console)
        self._live.start()
        console.show_cursor(True)  # a killed process could not bring it back

    def draw(self, lines: Sequence[Line] = ()) -> None:
        """The lines, then the frame as the state is now."""
        if lines:
            said = Group(*(Text(line.plain(), _style(line.level)) for line in lines))
            self._console.print(said, soft_wrap=True)  # the terminal wraps: what is copied is one line
        else:
            self._live.refresh()

    def stop(self) -> None:
        """The frame is taken away."""
        self._live.stop()


class _Live(Live):
    """Rich's, but for terminals that wrap what is drawn already when they get narrower: it goes up by the rows that
    the frame takes now."""

    def __init__(self, frame: Frame, console: Console) -> None:
        self._frame = frame
        super().__init__(
            frame,
            console=console,
            auto_refresh=False,
            transient=True,
            vertical_overflow="crop",
            redirect_stdout=sys.stdout.isatty(),  # what goes to a file or a pipe goes there
        )

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        found = super().process_renderables(renderables)
        width = max(1, self.console.width)
        rows = sum(max(1, math.ceil(length / width)) for length in self._frame.lengths)
        if self.console.is_interactive and rows > len(self._frame.lengths):
            up = ((ControlType.CURSOR_UP, 1), (ControlType.ERASE_IN_LINE, 2)) * (rows - 1)
            found[0] = Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2), *up)
        return found


def _style(level: int) -> str:
    return next((style for least, style in STYLES if level >= least), "")
