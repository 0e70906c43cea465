"""`data profile` and `data compare`: which segments are meant, and their profiles as tables."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from pipelines.config import Gate
from pipelines.errors import DataError
from pipelines.gate import Finding, judge
from pipelines.gate_distance import unknown_share
from pipelines.profile import profile_segment
from pipelines.profile_format import ColumnProfile, SegmentProfile, read_profile
from pipelines.schema import Schema
from pipelines.segments import Segment, included, list_segments
from trainer.config import load_config
from trainer.errors import ConfigError
from trainer.run_dir import write_atomic

WIDE = 150
MOST = 40  # findings shown
LEAST_SEVERITY = 0.1  # below, a change says nothing


@dataclass(frozen=True)
class _Source:
    """Where profiles come from. segments: of the run file, or of the path."""

    schema: Schema
    gate: Gate
    segments: tuple[Segment, ...]
    sample_rows: int

    def profile(self, segment: Segment) -> SegmentProfile:
        click.echo(f"profiling segment '{segment.name}' ({len(segment.files)} files)", err=True)
        return profile_segment(segment, self.schema, self.sample_rows)


def show_profile(
    path: str | None, config_path: str | None, name: str | None, json_path: str | None, everything: bool
) -> None:
    """Every segment in a line, one in full. Raises ConfigError or DataError."""
    if (path is None) == (config_path is None):
        raise ConfigError("data profile → takes either a PATH or --config F → give one of them")
    if json_path and Path(json_path).exists():
        raise ConfigError(f"'{json_path}' exists → a profile never replaces a file → name another")
    source = _source(path, config_path, everything)
    names = [segment.name for segment in source.segments]
    if name is not None and name not in names:
        raise DataError(
            f"--segment {name} → the segments are {', '.join(names[:8])}{' …' if names[8:] else ''} → name one"
        )
    last = len(names) - 1 if name is None else names.index(name)
    first = 0 if name is None else max(0, last - source.gate.previous)
    profiles = [source.profile(segment) for segment in source.segments[first : last + 1]]
    console = _console()
    if len(profiles) > 1:
        console.print(_overview(profiles))
        for line in _coverage(source.schema, profiles):
            console.print(line)
    for line in _head(profiles[-1]):
        console.print(line)
    console.print(_columns(source.schema, profiles[-1], profiles[:-1][-source.gate.previous :]))
    if json_path:
        write_atomic(Path(json_path), profiles[-1].to_json())
        click.echo(f"profile of segment '{profiles[-1].segment}' written to {json_path}")


def show_comparison(before: str, now: str, config_path: str | None, everything: bool) -> None:
    """What changed, the most severe first. Raises ConfigError or DataError."""
    path = next((place for place in (before, now) if not place.endswith(".json")), None)
    source = None
    if config_path is not None or path is not None:
        source = _source(None if config_path else path, config_path, everything)
    a, b = (_named(place, source) for place in (before, now))
    if a.columns_digest != b.columns_digest:
        click.echo("the profiles were made by different schemas: only columns that both have are compared", err=True)
    gate = source.gate if source else Gate()
    findings = judge(b, [a], gate, source.schema if source else None)
    console = _console()
    for line in (*_head(a), *_head(b), *_label_rates(a, b), *_schema_changes(a, b)):
        console.print(line)
    shown = [finding for finding in findings if finding.severity >= LEAST_SEVERITY][:MOST]
    if shown:
        console.print(_changes(shown, a.segment, b.segment))
    tripped = sum(finding.tripped for finding in findings)
    click.echo(f"{len(findings)} figures compared, {tripped} beyond the limits of [data.gate]")


def _source(path: str | None, config_path: str | None, everything: bool) -> _Source:
    if config_path is not None:
        config = load_config(config_path)
        gate = config.data.gate or Gate()
        segments = tuple(included(list_segments(config.data.rows), config.data))
        return _Source(config.schema, gate, segments, 0 if everything else gate.sample_rows)
    assert path is not None
    gate = Gate()
    return _Source(_drafted(path), gate, tuple(_list(path)), 0 if everything else gate.sample_rows)


def _drafted(path: str) -> Schema:
    """Columns and tasks as `data inspect` would draft them: types tell what are ids, numbers, times and lists.
    A draft may lack what its user has to fill in; nothing of that is needed here."""
    from pipelines.inspect import inspect  # noqa: PLC0415

    click.echo("no --config: columns, times and labels are guessed, as `data inspect` does", err=True)
    draft = tomllib.loads(inspect(path).schema_toml())["schema"]
    needed = {key: draft[key] for key in ("user", "time_unit", "columns", "tasks") if key in draft}
    return Schema.model_validate(_tuples(needed))


def _tuples(value: object) -> object:
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _list(path: str) -> list[Segment]:
    try:
        return list_segments(path)
    except DataError as error:
        raise DataError([problem.replace("data.rows = ", "path ") for problem in error.problems]) from error


def _named(place: str, source: _Source | None) -> SegmentProfile:
    """A profile's file, a segment of the run file, or a path, all of which is then one segment."""
    if place.endswith(".json") or source is None:
        return read_profile(Path(place))
    for segment in source.segments:
        if segment.name == place:
            return source.profile(segment)
    found = _list(place)
    files = tuple(file for segment in found for file in segment.files)
    return source.profile(Segment(place.rstrip("/").rsplit("/", 1)[-1].rsplit("=", 1)[-1], files))


def _console() -> Console:
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:  # a file has room for the whole table
        console.width = max(console.width, WIDE)
    return console


def _head(profile: SegmentProfile) -> list[str]:
    low, middle, high = profile.rows_per_file
    read = "all read" if profile.rows_read == profile.rows else f"{profile.rows_read:,} of them read"
    lines = [
        f"segment '{profile.segment}': {profile.rows:,} rows ({read}) in {profile.files} file"
        f"{'s' if profile.files > 1 else ''} of {low:,} to {high:,} rows (median {middle:,}), "
        f"{profile.bytes / 1e6:,.1f} MB"
    ]
    if profile.times:
        lines.append(f"  requests from {_moment(profile.times[0])} to {_moment(profile.times[1])} UTC")
    for name, task in profile.tasks.items():
        share = task.labelled / max(task.positions, 1)
        lines.append(
            f"  task {name}: rate {task.rate:.4f} of {task.labelled:,} labelled ({share:.1%} of {task.positions:,})"
        )
    return lines


def _overview(profiles: Sequence[SegmentProfile]) -> Table:
    table = Table("segment", "rows", "files", box=None)
    for task in profiles[0].tasks:
        table.add_column(f"{task} rate", justify="right")
    for profile in profiles:
        rates = [f"{task.rate:.4f}" if task.labelled else "–" for task in profile.tasks.values()]
        table.add_row(profile.segment, f"{profile.rows:,}", f"{profile.files:,}", *rates)
    return table


def _coverage(schema: Schema, profiles: Sequence[SegmentProfile]) -> list[str]:
    """Of the columns that files may lack, where some do: runs of segments of one coverage."""
    lines = []
    for name, spec in schema.columns.items():
        if spec.default is None or name not in profiles[0].columns:
            continue
        runs: list[tuple[str, str, float]] = []
        for profile in profiles:
            share = profile.columns[name].coverage
            if runs and runs[-1][2] == share:
                runs[-1] = (runs[-1][0], profile.segment, share)
            else:
                runs.append((profile.segment, profile.segment, share))
        if runs != [(profiles[0].segment, profiles[-1].segment, 1.0)]:
            spans = [f"{share:.1%} in {first if first == last else f'{first}..{last}'}" for first, last, share in runs]
            lines.append(f"column '{name}' (default {spec.default!r}) is there for {', '.join(spans)}")
    return lines


def _columns(schema: Schema, profile: SegmentProfile, before: Sequence[SegmentProfile]) -> Table:
    table = Table("column", box=None)
    for head in ("coverage", "null", "NaN", "distinct", "unknown ids", "list length"):
        table.add_column(head, justify="right")
    table.add_column("1 % · 50 % · 99 %, or the most frequent values", overflow="fold")
    for name, column in profile.columns.items():
        unknown = unknown_share(column, [other.columns[name] for other in before if name in other.columns])
        table.add_row(
            name,
            f"{column.coverage:.0%}",
            _share(column.nulls + column.null_lists),
            _share(column.nans),
            f"{column.distinct:,}",
            f"{unknown.value:.1%}" if unknown and before else "",
            f"{column.lengths.mean:.1f} (max {column.lengths.max:,})" if column.lengths else "",
            _times(column) if schema.columns[name].kind == "time" else _values(column),
        )
    return table


def _values(column: ColumnProfile) -> str:
    if column.quantiles and not column.exact_top:
        parts = [f"{column.quantiles[place]:.6g}" for place in (1, 50, 99)]
        return " · ".join(parts) + "".join(f", {value}: {share:.2%}" for value, share in column.sentinels.items())
    return ", ".join(f"{top.value}: {top.share:.2%}" for top in column.top[:4]) + "".join(
        f", {value}: {share:.2%}"
        for value, share in column.sentinels.items()
        if value not in [top.value for top in column.top[:4]]
    )


def _times(column: ColumnProfile) -> str:
    if not column.quantiles:
        return ""
    shares = "".join(f", {value}: {share:.2%}" for value, share in column.sentinels.items())
    return " · ".join(_moment(column.quantiles[place]) for place in (1, 50, 99)) + shares


def _moment(micros: float) -> str:
    """UTC to the second; a number that no calendar has stays one."""
    try:
        return datetime.fromtimestamp(micros / 1e6, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return f"{micros:.6g} µs"


def _share(value: float) -> str:
    return f"{value:.2%}" if value else ""


def _label_rates(a: SegmentProfile, b: SegmentProfile) -> list[str]:
    """With 95 % intervals; what one user does is not independent, so that it counts once."""

    def told(profile: SegmentProfile, name: str) -> str:
        task = profile.tasks[name]
        users = max(min(task.labelled, profile.users_read), 1)
        return f"{task.rate:.4f} ± {1.96 * math.sqrt(task.rate * (1 - task.rate) / users):.4f}"

    return [f"label rate of {name}: {told(a, name)} → {told(b, name)}" for name in a.tasks if name in b.tasks]


def _schema_changes(a: SegmentProfile, b: SegmentProfile) -> list[str]:
    lines = [
        f"column '{name}' was {', '.join(before.types) or 'absent'} and is {', '.join(now.types) or 'absent'}"
        for name, now in b.columns.items()
        if (before := a.columns.get(name)) is not None and before.types.keys() != now.types.keys()
    ]
    only = [(a, name) for name in a.columns.keys() - b.columns.keys()]
    only += [(b, name) for name in b.columns.keys() - a.columns.keys()]
    return lines + [f"column '{name}' is only in '{owner.segment}'" for owner, name in sorted(only, key=lambda o: o[1])]


def _changes(findings: Sequence[Finding], before: str, now: str) -> Table:
    table = Table("what changed", box=None)
    for head in (before, now, "of what is allowed"):
        table.add_column(head, justify="right")
    table.add_column("rule of [data.gate]")
    for finding in findings:
        severity = "∞" if math.isinf(finding.severity) else f"{finding.severity:.2f} ×"
        mark = "  ← beyond it" if finding.tripped else ""
        table.add_row(
            f"{finding.where}: {finding.what}".removeprefix(": "),
            finding.before_said(),
            finding.said(finding.now),
            severity,
            f"{finding.rule} = {finding.limit:g}{mark}",
        )
    return table
