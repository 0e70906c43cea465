"""Folders of a verb's own making: whole or not at all, and never over what somebody has."""

from __future__ import annotations

import os
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.errors import DataError
from pipelines.folders import fresh_folder
from trainer.errors import ConfigError
from trainer.run_dir import fsync_directory


@contextmanager
def new_folder(out: str) -> Iterator[Path]:
    """Yields a hidden folder beside `out` that becomes it in one rename, durable; on any error it is removed.

    Raises ConfigError where `out` is there and not an empty folder.
    """
    if "://" in out:
        raise ConfigError(
            f"output {out} → it is written to a folder of this machine → name one, and copy it from there"
        )
    target = Path(out).absolute()
    try:
        with fresh_folder(target) as work:
            yield work
            for path in work.rglob("*"):
                if path.is_file():
                    _fsync(path)
            for folder in (*(path for path in work.rglob("*") if path.is_dir()), work):
                fsync_directory(folder)
        fsync_directory(target.parent)
    except DataError as error:
        raise ConfigError(error.problems) from error


def file_name(table: str) -> str:
    """A table's name as that of a file: what is not a letter, a digit or one of "_.-~" is percent-encoded, as is a dot
    in front."""
    name = urllib.parse.quote(table, safe="")
    return f"%2E{name[1:]}" if name.startswith(".") else name


def _fsync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
