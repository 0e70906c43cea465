"""Logging of our four packages: plain lines for the person watching, the same with times in train.log."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any, TextIO

PACKAGES = ("trainer", "embeddings", "model", "pipelines")


def to_console(stream: TextIO | None = None, level: int = logging.INFO) -> None:
    """Send our packages' log lines to `stream` (stderr by default), in place of where they went before."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_Plain())
    for package in PACKAGES:
        logger = logging.getLogger(package)
        logger.setLevel(level)
        logger.propagate = False
        for old in [h for h in logger.handlers if type(h) is logging.StreamHandler]:
            logger.removeHandler(old)
        logger.addHandler(handler)


def also_to(stream: Any, name: str) -> None:
    """Send the lines of one logger to `stream` too."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_Plain())
    logging.getLogger(name).addHandler(handler)


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


class _Plain(logging.Formatter):
    """`message`, with the level in front from warnings on."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return f"{record.levelname.lower()}: {text}" if record.levelno >= logging.WARNING else text
