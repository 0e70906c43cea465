"""A first `[schema]` from what `data inspect` found. Every guess says so: the file is for its user to correct."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.hashing import ids_of
from pipelines.inspect import Findings, elements, is_list
from pipelines.inspect_toml import schema_toml
from pipelines.schema import Column, History, Kind, Role, Schema, Task

USER = re.compile(r"(^|_)(user|uid|userid|member|customer|visitor|account)", re.IGNORECASE)
REQUEST = re.compile(r"(^|_)(request|impression|query|req)", re.IGNORECASE)
TIME = re.compile(r"(^|_)(time|timestamp|ts|date|datetime|at)($|_)", re.IGNORECASE)
KNOWN = re.compile(r"action|known|observed", re.IGNORECASE)
LABEL = re.compile(r"label|click|like|purchase|buy|conver|order|install|follow|share|target", re.IGNORECASE)
ACTION = re.compile(rf"{LABEL.pattern}|rating|dwell|watch|(^|_)(action|play|duration|finish)", re.IGNORECASE)
NUMBER = re.compile(r"age|price|count|num|score|amount|size|length|duration", re.IGNORECASE)
Unit = Literal["s", "ms", "us"]
EPOCH_UNITS: tuple[tuple[Unit, float, float], ...] = (("s", 1e8, 1e11), ("ms", 1e11, 1e14), ("us", 1e14, 1e17))


@dataclass
class Draft:
    """The schema being made, and why: notes {column: guess}, warnings for the head of the file."""

    findings: Findings
    columns: dict[str, Column] = field(default_factory=dict)
    histories: dict[str, History] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    time_unit: Unit = "s"

    def add(self, name: str, role: Role, kind: Kind, note: str, **more: Any) -> None:
        """One column and what was guessed about it."""
        self.columns[name] = Column(role=role, kind=kind, **more)
        self.notes[name] = note


def draft_toml(findings: Findings) -> str:
    """The draft as TOML."""
    schema, draft = _draft(findings)
    sampled = f"{len(findings.sample):,} of {findings.rows:,} rows"
    head = [f"Drafted by `data inspect` from a sample of {sampled}. Check every guess."]
    return schema_toml(schema, draft.notes, [*head, *(f"MISSING: {warning}" for warning in draft.warnings)])


def _draft(findings: Findings) -> tuple[Schema, Draft]:
    draft = Draft(findings)
    groups = {group: _is_series(findings, group) for group in findings.groups}
    lists = [group for group, series in groups.items() if series]
    supervised = _supervised(findings, lists)
    has_candidates = supervised is not None and not _times(findings, supervised)
    user = _add_static(draft, [name for group in lists for name in group])
    if has_candidates and supervised is not None:
        _add_supervised(draft, supervised, "candidates")
    names = _history_names([group for group in lists if not (has_candidates and group == supervised)])
    for group, name in names.items():
        _add_history(draft, group, name, supervised=group == supervised)
    if (has_candidates or supervised is None) and not any(
        c.role == "time" and not c.group for c in draft.columns.values()
    ):
        draft.warnings.append("no static column of times was found: candidates supervision needs the request's")
    if supervised is None:
        draft.warnings.append("no list of 0 and 1 was found: name the label columns, and a task for each")
    if not any(is_list(field.type) for field in findings.sample.schema):
        draft.warnings.append(
            "no column holds lists: an event log, then; `tokenformer data prepare` makes request rows of it, which a "
            "schema with groups and `source` describes (docs/your-logs.md)"
        )
    tasks = _tasks(draft)
    schema = Schema(
        user=user,
        supervision="candidates" if has_candidates or supervised is None else "history",
        supervised_history="" if has_candidates or supervised is None else names[supervised],
        time_unit=draft.time_unit,
        columns=draft.columns,
        histories=draft.histories,
        tasks=tasks,
    )
    return schema, draft


def _is_series(findings: Findings, group: tuple[str, ...]) -> bool:
    """Whether list columns of one length are a history or candidates: several of them, or a lone list of 0 and 1."""
    return len(group) > 1 or (findings.column(group[0]).zero_one and LABEL.search(group[0]) is not None)


def _supervised(findings: Findings, groups: list[tuple[str, ...]]) -> tuple[str, ...] | None:
    """The group that holds labels: 0/1 lists without times (candidates) before those with, shorter before longer."""
    holding = [group for group in groups if any(findings.column(name).zero_one for name in group)]
    return min(holding, key=lambda g: (bool(_times(findings, g)), findings.column(g[0]).mean_length), default=None)


def _times(findings: Findings, names: tuple[str, ...]) -> list[str]:
    """Columns of times: by type, or integers in the range of an epoch with a name that says so."""
    return [name for name in names if _epoch_unit(findings, name) is not None]


def _epoch_unit(findings: Findings, name: str) -> Unit | Literal[""] | None:
    """Unit of a column of times; "" for Arrow's own time types; None where it holds no times."""
    values = elements(findings.sample[name])
    if pa.types.is_timestamp(values.type) or pa.types.is_date(values.type):
        return ""
    if not pa.types.is_integer(values.type) or not TIME.search(name) or not len(values.drop_null()):
        return None
    middle = float(np.median(values.drop_null().to_numpy()))
    return next((unit for unit, low, high in EPOCH_UNITS if low <= middle < high), None)


def _add_time(draft: Draft, name: str, group: str, note: str) -> None:
    draft.time_unit = _epoch_unit(draft.findings, name) or draft.time_unit
    draft.add(name, "time", "time", note, group=group)


def _add_static(draft: Draft, listed: list[str]) -> str:
    """Columns of one value a row. Returns the user's, "" where none looks like one."""
    findings = draft.findings
    static = [column.name for column in findings.columns if column.name not in listed]
    ids = [
        name
        for name in static
        if _is_id(elements(findings.sample[name]).type) and not is_list(findings.sample[name].type)
    ]
    user = next((name for name in ids if USER.search(name)), "")
    request = next((n for n in ids if n != user and REQUEST.search(n) and findings.column(n).distinct > 1), "")
    times = _times(findings, tuple(static))
    time = next((name for name in times if REQUEST.search(name)), times[0] if times else "")
    if not user:
        draft.warnings.append("no column is named like a user: set schema.user")
    for name in static:
        if name == request:
            draft.add(name, "request", "id", "by its name")
        elif name == time:
            _add_time(draft, name, "", "time of the request")
        elif name in times or pa.types.is_null(elements(findings.sample[name]).type):
            draft.add(name, "key", "time" if name in times else "id", "carried along, no input")
        elif findings.column(name).zero_one and LABEL.search(name):
            draft.add(name, "key", "id", "a label? labels are lists beside the candidates; wrap it in a list of one")
        else:
            role: Role = "user" if name == user or _constant_per_user(findings, user, name) else "context"
            note = "by its name" if name == user else f"{'one value' if role == 'user' else 'several values'} a user"
            draft.add(name, role, *_kind(findings, name, 0, note))
            _add_details(draft, name)
    return user


def _add_supervised(draft: Draft, group: tuple[str, ...], label: str) -> None:
    """Columns of a group with labels; `label` is its name in the schema."""
    findings = draft.findings
    binary = [name for name in group if findings.column(name).zero_one]
    named = [name for name in binary if LABEL.search(name)]
    for name in group:
        if name in (named or binary):
            draft.add(name, "label", "dense", "0/1 list", group=label)
        elif label != "candidates" and ACTION.search(name):
            draft.add(name, "action", *_kind(findings, name, 1, "known after the event only"), group=label)
        else:
            draft.add(name, "item", *_kind(findings, name, 1, "a field of the item"), group=label)
            _add_details(draft, name)


def _add_history(draft: Draft, group: tuple[str, ...], name: str, *, supervised: bool) -> None:
    findings, label = draft.findings, f"history.{name}"
    times = _times(findings, group)
    action_time = next((column for column in times[1:] if KNOWN.search(column)), "")
    longest = max(findings.column(group[0]).max_length, 1)
    draft.histories[name] = History(max_length=longest, time=times[0] if times else "", action_time=action_time)
    if not times:
        draft.warnings.append(f"history '{name}' has no list of times: events have their times; add one")
    rest = tuple(column for column in group if column not in times)
    for column in times:
        _add_time(draft, column, label, "time of the event" if column == times[0] else "another time")
    if supervised:
        _add_supervised(draft, rest, label)
        return
    for column in rest:
        shares = _shared(draft, column)
        action = not shares and (ACTION.search(column) or findings.column(column).zero_one)
        note = f"the same thing as '{shares}'" if shares else "known after the event only" if action else "of the event"
        kind, note = _kind(findings, column, 1, note)
        draft.add(column, "action" if action else "item", kind, note, group=label, shares=shares)
        _add_details(draft, column)


def _kind(findings: Findings, name: str, depth: int, note: str) -> tuple[Kind, str]:
    """How the values of a column are read; `depth`: lists around them that the group accounts for."""
    kind = findings.sample[name].type
    for _ in range(depth):
        kind = kind.value_type
    values = elements(findings.sample[name]).type
    if is_list(kind):
        return ("ids" if _is_id(values) else "vector"), note
    if _is_id(values):
        number = (
            depth == 0 and pa.types.is_integer(values) and NUMBER.search(name) and findings.column(name).distinct > 8
        )
        return ("bucket", f"{note}, a number cut at its quantiles") if number else ("id", note)
    return "dense", note


def _add_details(draft: Draft, name: str) -> None:
    """Size of a vector, boundaries of a bucket: from the sample."""
    column, sample = draft.columns[name], draft.findings.sample[name]
    if column.kind == "vector":
        inner = pc.list_flatten(sample) if column.group else sample
        size = pc.max(pc.list_value_length(inner)).as_py() or 1
        draft.columns[name] = column.model_copy(update={"size": size})
    if column.kind == "bucket":
        cuts = np.quantile(elements(sample).drop_null().to_numpy(), [0.1, 0.25, 0.5, 0.75, 0.9])
        draft.columns[name] = column.model_copy(update={"boundaries": tuple(sorted(set(cuts.tolist())))})


def _shared(draft: Draft, column: str) -> str:
    """The candidate column whose name is the longest part of this one's, if the kinds agree."""
    kind = elements(draft.findings.sample[column]).type
    same = [
        name
        for name, spec in draft.columns.items()
        if spec.group == "candidates" and spec.role == "item" and elements(draft.findings.sample[name]).type == kind
    ]
    words = set(re.split(r"[._]", column.lower()))
    fits = [name for name in same if name in column or set(re.split(r"[._]", name.lower())) - {"id"} <= words]
    return max(fits, key=len, default="")


def _history_names(groups: list[tuple[str, ...]]) -> dict[tuple[str, ...], str]:
    """By the prefix that a group's columns share, else h1, h2, …"""
    names: dict[tuple[str, ...], str] = {}
    for place, group in enumerate(groups, 1):
        prefixes = {name.split("_")[0] for name in group}
        prefix = prefixes.pop() if len(prefixes) == 1 else ""
        names[group] = prefix if prefix.isidentifier() and prefix not in names.values() else f"h{place}"
    return names


def _constant_per_user(findings: Findings, user: str, name: str) -> bool:
    """Whether no user of the sample has two values of a column of ids; lists and floats are taken for the user's."""
    values = findings.sample[name]
    if not user or is_list(values.type) or not _is_id(elements(values).type):
        return True
    pairs = np.unique(np.stack([ids_of(findings.sample[user]), ids_of(values)]), axis=1)
    return bool(len(np.unique(pairs[0])) == pairs.shape[1])


def _tasks(draft: Draft) -> dict[str, Task]:
    """One a label; its space is the label that is 1 wherever this one is known, and not everywhere."""
    labels = {n: elements(draft.findings.sample[n]) for n, spec in draft.columns.items() if spec.role == "label"}
    tasks = {}
    for name, values in labels.items():
        known = values.is_valid()
        spaces = [
            other
            for other, others in labels.items()
            if other != name and draft.findings.column(other).rate < 1 and pc.min(others.filter(known)).as_py() == 1
        ]
        tasks[name] = Task(label=name, space=spaces[0] if spaces else "")
        if spaces:
            draft.notes[name] += f", known only where '{spaces[0]}' is 1"
    return tasks


def _is_id(kind: pa.DataType) -> bool:
    strings = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return bool(strings or pa.types.is_integer(kind) or pa.types.is_boolean(kind))
