"""A small terminal: what is on screen after what was written to it. Knows what rich writes, and refuses the rest."""

from __future__ import annotations

import re

CONTROL = re.compile(r"\x1b\[(\??)([\d;]*)([A-Za-z])|\x1b\][^\x07]*\x07")


class Terminal:
    """rows: all that were ever written, the newest `height` of them on screen; lines: the same, those that the terminal
    wrapped in one piece."""

    def __init__(self, width: int, height: int = 24) -> None:
        self.width, self.height = width, height
        self.rows = [""]
        self._wrapped = [False]  # whether a row goes on with the one before
        self._row = self._column = 0
        self.cursor_is_shown = True

    def feed(self, text: str) -> None:
        at = 0
        for found in CONTROL.finditer(text):
            self._print(text[at : found.start()])
            at = found.end()
            if found[3]:
                self._control(found[1], found[2], found[3])
        self._print(text[at:])

    @property
    def screen(self) -> list[str]:
        return [row.rstrip() for row in self.rows[-self.height :]]

    @property
    def lines(self) -> list[str]:
        found: list[str] = []
        for row, wrapped in zip(self.rows, self._wrapped, strict=True):
            if wrapped:
                found[-1] += row
            else:
                found.append(row)
        return [line.rstrip() for line in found]

    def resize(self, width: int) -> None:
        """As a terminal that wraps its lines anew; the cursor stays at the same place of its line."""
        rows: list[str] = []
        wrapped: list[bool] = []
        starts = [row for row, is_wrapped in enumerate(self._wrapped) if not is_wrapped]
        for shown, start, end in zip(self.lines, starts, [*starts[1:], len(self.rows)], strict=True):
            line = shown
            if start <= self._row < end:
                within = (self._row - start) * self.width + self._column
                cursor = len(rows) + within // width, within % width
                line = line.ljust(within + 1)
            pieces = [line[at : at + width] for at in range(0, len(line), width)] or [""]
            rows += pieces
            wrapped += [False, *[True] * (len(pieces) - 1)]
        self.width, self.rows, self._wrapped = width, rows, wrapped
        self._row, self._column = cursor

    def _control(self, private: str, numbers: str, kind: str) -> None:
        number = int(numbers or 1) if numbers.isdigit() or not numbers else 0
        if kind == "A":
            self._row = max(0, len(self.rows) - self.height, self._row - number)
        elif kind == "K" and numbers == "2":
            self.rows[self._row] = ""
            self._wrapped[self._row] = False
        elif private and numbers == "25" and kind in "hl":
            self.cursor_is_shown = kind == "h"
        else:
            assert kind == "m", f"unknown control {private}{numbers}{kind}"

    def _print(self, text: str) -> None:
        for character in text:
            if character == "\r":
                self._column = 0
            elif character == "\n":
                self._down(wrapped=False)
                self._column = 0  # as a terminal line discipline (ONLCR) makes of it
            else:
                if self._column >= self.width:
                    self._down(wrapped=True)
                    self._column = 0
                row = self.rows[self._row].ljust(self._column)
                self.rows[self._row] = row[: self._column] + character + row[self._column + 1 :]
                self._column += 1

    def _down(self, wrapped: bool) -> None:
        self._row += 1
        if self._row == len(self.rows):
            self.rows.append("")
            self._wrapped.append(wrapped)
        else:
            self._wrapped[self._row] = wrapped
