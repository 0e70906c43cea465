"""Request rows that are not there yet, made as the run file says, and said aloud."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

from pipelines.footer_cache import FooterCache
from pipelines.footers import check_files
from pipelines.segments import find_segments
from trainer.config import Config
from trainer.errors import RunDataError

log = logging.getLogger(__name__)


def ensure_rows(config: Config) -> None:
    """Make the rows when absent and `[data.prepare]` is given, and before them the log, from `[data.synth]`."""
    data = config.data
    if data.prepare is None or not rows_are_made(config):
        return
    if data.synth is not None and _absent(data.prepare.log):
        from pipelines.synth import write_log  # noqa: PLC0415 - most runs have their data

        log.info("no event log at %s: writing the synthetic one of [data.synth]", data.prepare.log)
        _say(write_log(data.synth, Path(data.prepare.log)))
    log.info("no request rows at %s: preparing them from %s", data.rows, data.prepare.log)
    _say(prepare_rows(config, data.rows))


def prepare_rows(config: Config, out: str, *, refresh: bool = False, as_of: str = "") -> Any:
    """Event log → request rows in `out`; returns the report. Raises DataError."""
    from pipelines.prepare import prepare  # noqa: PLC0415 - imports Ray Data

    return prepare(config.schema, config.data, Path(out), refresh=refresh, as_of=as_of)


def check_rows(config: Config, cache: FooterCache) -> None:
    """Hold the footers of the run's files against the schema, and leave them in the cache for all that plan. Raises
    DataError or RunDataError, with all mismatches."""
    segments = find_segments(config.data)
    data = config.data
    problems = check_files(
        config.schema,
        [*segments.train, *segments.eval],
        cache,
        data.read_retries,
        quarantine=data.on_bad_row == "quarantine",
    )
    if problems:
        raise RunDataError(problems)


def rows_are_made(config: Config) -> bool:
    """Whether the run begins with making its rows: there are none, and the run file says how."""
    return config.data.prepare is not None and _absent(config.data.rows)


def _absent(path: str) -> bool:
    """True for a plain local path where nothing is. Patterns and URIs are somebody's own: they are never made."""
    return not re.search(r"[*?\[]|://", path) and not Path(path).exists()


def _say(report: Any) -> None:
    for line in report.lines():
        log.info("  %s", line)
