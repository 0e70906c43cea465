"""Logging of our four packages: plain lines for the person watching, the same with times in train.log."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from trainer.lines import Line

PACKAGES = ("trainer", "embeddings", "model", "pipelines")


def to_console(stream: TextIO | None = None, level: int = logging.INFO) -> None:
    """Send our packages' log lines to `stream` (stderr by default), in place of where they went before."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_Plain())
    _replace(handler, level)


def to_lines(take: Callable[[Line], None], level: int = logging.INFO, rank: int = 0, host: str = "") -> None:
    """Hand them to `take` instead. rank, host: of this process; `take` is called by whoever logs."""
    _replace(_ToLines(take, rank, host), level)


def _replace(handler: logging.Handler, level: int) -> None:
    for package in PACKAGES:
        logger = logging.getLogger(package)
        logger.setLevel(level)
        logger.propagate = False
        for old in [h for h in logger.handlers if type(h) in (logging.StreamHandler, _ToLines)]:
            logger.removeHandler(old)
        logger.addHandler(handler)


def to_file(path: Path) -> logging.Handler:
    """Also append them to a file, with times. Returns the handler, for `detach`."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for package in PACKAGES:
        logging.getLogger(package).addHandler(handler)
    return handler


def detach(handler: logging.Handler) -> None:
    """End what `to_file` began."""
    for package in PACKAGES:
        logging.getLogger(package).removeHandler(handler)
    handler.close()


class _ToLines(logging.Handler):
    def __init__(self, take: Callable[[Line], None], rank: int, host: str) -> None:
        super().__init__()
        self._take, self._ranks, self._host = take, (rank,), host

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._take(Line(self.format(record), record.levelno, self._ranks, self._host))
        except Exception:
            self.handleError(record)


class _Plain(logging.Formatter):
    """`message`, with the level in front from warnings on."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return f"{record.levelname.lower()}: {text}" if record.levelno >= logging.WARNING else text
