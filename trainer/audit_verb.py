"""The `audit` verb: a table a segment, a line that says whether all is well, and the runs that consumed a segment."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from trainer import logs
from trainer.audit import RunAudit, audit_run
from trainer.audit_lineage import account_of
from trainer.audit_parents import audit_model
from trainer.audit_segment import SegmentAudit
from trainer.errors import ConfigError, RunDataError
from trainer.run_dir import RunDir

LINES = 20  # findings that are told one by one
COLUMNS = ("segment", "version", "rows", "epochs", "read once", "sampled out", "quarantined", "not yet", "missed",
           "repeated", "other ids")  # fmt: skip


def audit(run: str, as_json: bool, lineage: bool = False) -> None:
    """Print what was found. lineage: also of the runs that the model came from. Raises RunDataError (exit code 3) with
    a line for each thing that is not as it should be."""
    logs.to_console(level=logging.WARNING)
    audits = audit_model(Path(run)) if lineage else [audit_run(Path(run))]
    if as_json:
        found = [to_json(audit) for audit in audits]
        click.echo(json.dumps(found if lineage else found[0], indent=2))
    elif lineage:
        _show(("run", *COLUMNS), ((audit.run, *_cells(s)) for audit in audits for s in audit.segments))
    else:
        _show(COLUMNS, map(_cells, audits[0].segments))
    findings = [finding for audit in audits for finding in audit.all_findings]
    if findings:
        lines = [finding.line for finding in findings[:LINES]]
        more = [f"and {len(findings) - LINES} more findings → all of them → --json"] if len(findings) > LINES else []
        raise RunDataError([*lines, *more])
    if not as_json:
        click.echo(closing_line(audits))


def closing_line(audits: Sequence[RunAudit]) -> str:
    """Of a run, or of several that one model came from, in which nothing was found."""
    segments = [segment for audit in audits for segment in audit.segments]
    read = sum(segment.read for segment in segments)
    left_out = sum(segment.sampled_out + segment.quarantined for segment in segments)
    not_yet = sum(segment.not_yet for segment in segments)
    rule = f" · {left_out:,} of them without weight, by rule" if left_out else ""
    starts = sum(audit.attempts for audit in audits)
    attempts = f"{starts} attempt{'s' if starts != 1 else ''}" + (f" of {len(audits)} runs" if len(audits) > 1 else "")
    later = f" · {not_yet:,} rows not yet" if not_yet else ""
    return (
        f"audit: fine · {read:,} rows read, each exactly once an epoch{rule}{later}"
        f" · checkpoint of step {audits[-1].step:,}, {sum(a.steps for a in audits):,} steps of {attempts}"
    )


def to_json(found: RunAudit) -> dict[str, Any]:
    """Everything, in plain values."""
    segments = [
        {
            "segment": segment.name,
            "versions": sorted(segment.versions),
            "version_now": segment.version_now,
            "fingerprints": sorted(segment.fingerprints),
            "steps": segment.steps,
            **{
                key: getattr(segment, key)
                for key in ("rows", "epochs", "read", "sampled_out", "quarantined", "not_yet")
            },
            **{key: segment.count(key) for key in ("missed", "repeated")},
            "other_ids": segment.count("ids"),
        }
        for segment in found.segments
    ]
    head = {key: getattr(found, key) for key in ("run", "step", "steps", "attempts")}
    findings = [asdict(finding) for finding in found.all_findings]
    return {**head, "fine": not findings, "segments": segments, "findings": findings}


@dataclass
class Consumer:
    """A run that consumed a segment, in one version of it."""

    run: str
    fingerprint: str
    version: int | None
    epochs: set[int] = field(default_factory=set)
    first: int = 2**62
    last: int = 0
    rows: int = 0


def find(segment: str, folder: str, as_json: bool) -> None:
    """Print the runs below a folder whose newest checkpoint holds rows of a segment. Raises ConfigError: no folder."""
    if not Path(folder).is_dir():
        raise ConfigError(f"--runs '{folder}' is not a folder → runs are looked for below it → check the path")
    found = [consumer for run in runs_below(Path(folder)) for consumer in consumers_of(run, segment)]
    if as_json:
        click.echo(json.dumps([asdict(c) | {"epochs": sorted(c.epochs)} for c in found], indent=2))
    elif not found:
        click.echo(f"audit: no run below {folder} consumed segment '{segment}'")
    else:
        cells = [
            (c.run, _version(c.version), c.fingerprint, f"{c.first:,}–{c.last:,}", str(len(c.epochs)), f"{c.rows:,}")
            for c in found
        ]
        _show(("run", "version", "fingerprint", "steps", "epochs", "rows"), cells)


def runs_below(folder: Path) -> Iterator[Path]:
    """Run directories; nothing inside one is looked at."""
    for path, folders, files in os.walk(folder):
        folders.sort()
        if "consumed" in folders and "config.toml" in files:
            folders.clear()
            yield Path(path)


def consumers_of(run: Path, segment: str) -> list[Consumer]:
    """One for each fingerprint and version that a run's lineage holds rows of."""
    run_dir = RunDir(run)
    latest = run_dir.step_dirs()
    steps = [step_dir.step for step_dir in latest if step_dir.complete]
    try:
        account = account_of(run_dir.consumed, max(steps, default=0))
    except RunDataError:  # of an earlier version, or one that never trained
        return []
    found: dict[tuple[str, int | None], Consumer] = {}
    for _, _, record in account.records(segment):
        key = (record.fingerprint, record.version)
        consumer = found.setdefault(key, Consumer(str(run), *key))
        consumer.epochs.add(record.epoch)
        consumer.first, consumer.last = min(consumer.first, record.steps[0]), max(consumer.last, record.steps[1])
        consumer.rows += record.rows
    return list(found.values())


def _cells(segment: SegmentAudit) -> tuple[str, ...]:
    once = segment.read - segment.count("repeated")
    numbers = (segment.rows, segment.epochs, once, segment.sampled_out, segment.quarantined, segment.not_yet)
    bad = (segment.count("missed"), segment.count("repeated"), segment.count("ids"))
    versions = ", ".join(map(str, sorted(segment.versions))) or _version(None)
    if segment.versions and {segment.version_now} != segment.versions:
        versions += f" (now {_version(segment.version_now)})"
    return (segment.name, versions, *(f"{number:,}" for number in (*numbers, *bad)))


def _version(version: int | None) -> str:
    return "–" if version is None else str(version)


def _show(header: Iterable[str], rows: Iterable[tuple[str, ...]]) -> None:
    table = Table(box=None, pad_edge=False, header_style="")
    for index, name in enumerate(header):
        table.add_column(name, justify="left" if index == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False)
    console.width = max(console.width, 140)
    console.print(table, crop=False)
