"""The `report` verb, and what `train` does of it at its end."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import click

from trainer.errors import ConfigError
from trainer.report.formats import size
from trainer.run_dir import RunDir, write_atomic

log = logging.getLogger(__name__)


def report(paths: Sequence[str], out: str | None) -> None:
    """Writes the page of these runs and says where. out: None = report.html of the first one. Raises ConfigError: no
    run there, or nowhere to write to."""
    target = Path(out) if out else RunDir(paths[0]).report
    content = made(paths)
    if target.is_dir():
        raise ConfigError(f"--out '{target}' is a directory → one file is written → name a file in it")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ConfigError(
            f"--out '{target}': '{target.parent}' is not a directory → the file is written there → name another"
        ) from None
    write_atomic(target, content)
    click.echo(f"{target} · {size(len(content.encode()))}")


def made(paths: Sequence[str]) -> str:
    """The page's text."""
    from trainer.report.page import page  # noqa: PLC0415 - jinja2, numpy
    from trainer.report.read import read_runs  # noqa: PLC0415

    return page(read_runs(paths))


def write_at_the_end(run_dir: RunDir) -> Path | None:
    """Of a run that has something to show. Whatever goes wrong here is a warning: the run is done, and fine."""
    try:
        if not run_dir.metrics.is_file() or run_dir.metrics.stat().st_size == 0:
            return None
        write_atomic(run_dir.report, made([str(run_dir.path)]))
    except Exception as error:
        log.warning(
            "report.html was not written: %s: %s → nothing else of the run is missing → `tokenformer report --run %s` "
            "tries again",
            type(error).__name__,
            error,
            run_dir.path,
        )
        return None
    return run_dir.report
