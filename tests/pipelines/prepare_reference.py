"""Request rows written straight from the contract, one event at a time: what pipelines.prepare is held against."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.config import Data
from pipelines.hashing import ids_of, mix
from pipelines.schema import Schema

Event = dict[str, Any]
LOG_TYPES = {
    "user": pa.string(), "country": pa.string(), "request": pa.int64(), "time": pa.int64(), "place": pa.int16(),
    "item": pa.int64(), "author": pa.string(), "tags": pa.list_(pa.string()), "click": pa.int8(), "buy": pa.int8(),
    "known": pa.int64(),
}  # fmt: skip
MIDNIGHT = 1_763_596_800  # 2025-11-20T00:00:00Z


def random_events(seed: int, requests: int = 250) -> list[Event]:
    """A log in no order, times few and at day borders, so that ties are the rule; requests of 1 to 3 events."""
    rng = random.Random(seed)
    times = [MIDNIGHT + offset for offset in (-7200, -2, -1, 0, 1, 5, 3600, 86_399, 86_400, 90_000)]
    events = []
    for request in range(requests):
        user, time = f"u{rng.randrange(12)}", rng.choice(times)
        for place in rng.sample(range(10), rng.randint(1, 3)):
            click = rng.randrange(2)
            events.append(
                {
                    "user": user,
                    "country": rng.choice(["DE", "BR", None]),
                    "request": request,
                    "time": time,
                    "place": place + 10 * request,  # unique, so that the stated order is one
                    "item": rng.randrange(50),
                    "author": rng.choice(["ann", "böb", "", None]),
                    "tags": rng.choice([None, [], ["a"], ["b", "c"]]),
                    "click": click,
                    "buy": rng.choice([0, 1, None]) if click else None,
                    "known": time + rng.choice([0, 1, 4000]),
                }
            )
    rng.shuffle(events)
    return events


def write_events(events: list[Event], folder: Path, files: int = 3) -> Path:
    """Several files of several row groups each."""
    folder.mkdir(parents=True)
    schema = pa.schema(list(LOG_TYPES.items()))
    for index in range(files):
        part = events[index * len(events) // files : (index + 1) * len(events) // files]
        pq.write_table(pa.Table.from_pylist(part, schema), folder / f"{index}.parquet", row_group_size=64)
    return folder


def read_rows(folder: Path) -> dict[str, list[Event]]:
    """{segment folder: its rows, file after file}."""
    segments = sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != "_")
    return {
        segment.name: [
            row for file in sorted(segment.glob("*.parquet")) for row in pq.ParquetFile(file).read().to_pylist()
        ]
        for segment in segments
    }


def expected_rows(schema: Schema, data: Data, events: list[Event]) -> dict[str, list[Event]]:
    """{segment folder: rows}, by nested loops."""
    settings = data.prepare
    assert settings is not None
    order = ["time", *settings.tie_keys]
    by_user: dict[str, list[Event]] = {}
    for event in events:
        by_user.setdefault(event["user"], []).append(event)
    for user, mine in by_user.items():
        by_user[user] = sorted(mine, key=lambda event: [event[name] for name in order])  # stable: the log's order
    users = sorted(by_user, key=lambda user: int(mix(ids_of(pa.array([user])), 0)[0]))
    if schema.supervision == "candidates":
        drafts = [draft for user in users for draft in _requests(schema, data, by_user[user])]
    else:
        drafts = [
            draft for user in users for draft in _stretches(schema, data, by_user[user], _cuts(schema, data, by_user))
        ]
    found: dict[str, list[Event]] = {}
    for segment, row in drafts:
        found.setdefault(segment, []).append(row)
    return found


def earlier(schema: Schema, mine: list[Event], event: Event) -> list[Event]:
    """What is known before an event."""
    if schema.ties == "order":
        return mine[: next(place for place, other in enumerate(mine) if other is event)]
    return [other for other in mine if other["time"] < event["time"]]


def _requests(schema: Schema, data: Data, mine: list[Event]) -> list[tuple[str, Event]]:
    drafts = []
    done = set()
    for event in mine:
        request = (event["request"], _day(event))  # a request ends with its day
        if request in done:
            continue
        done.add(request)
        if len(earlier(schema, mine, event)) < data.prepare.min_history:
            continue
        row = _statics(schema, event) | _histories(schema, data, mine, event)
        row |= _lists(schema, "candidates", [e for e in mine if (e["request"], _day(e)) == request])
        drafts.append((_day(event), _ordered(schema, row)))
    return drafts


def _stretches(
    schema: Schema, data: Data, mine: list[Event], cuts: list[tuple[Any, ...]] | None
) -> list[tuple[str, Event]]:
    settings = data.prepare
    stretches: list[tuple[str, int, int]] = []  # segment, first and last supervised place
    for place, event in enumerate(mine):
        if len(earlier(schema, mine, event)) < settings.min_history:
            continue
        segment = _day(event) if cuts is None else _side(data, event, cuts)
        full = stretches and stretches[-1][2] - stretches[-1][1] + 1 == settings.supervised_events
        if stretches and stretches[-1][0] == segment and not full:
            stretches[-1] = (segment, stretches[-1][1], place)
        else:
            stretches.append((segment, place, place))
    drafts = []
    for segment, first, last in stretches:
        begin = max(0, first - settings.context_events)
        row = _statics(schema, mine[first]) | _histories(schema, data, mine, mine[first])
        row |= _lists(schema, f"history.{schema.supervised_history}", mine[begin : last + 1])
        for name, spec in schema.columns.items():
            if spec.role == "label":
                row[name] = [None] * (first - begin) + row[name][first - begin :]
        drafts.append((segment, _ordered(schema, row)))
    return drafts


def _cuts(schema: Schema, data: Data, by_user: dict[str, list[Event]]) -> list[tuple[Any, ...]] | None:
    if data.prepare.split == "time":
        return None
    keys = sorted(
        _key(data, event)
        for mine in by_user.values()
        for event in mine
        if len(earlier(schema, mine, event)) >= data.prepare.min_history
    )
    first = int(len(keys) * 0.8)
    return [keys[first], keys[first + int(len(keys) * 0.1)]]


def _key(data: Data, event: Event) -> tuple[Any, ...]:
    return (event["time"], event["user"], *(event[name] for name in data.prepare.tie_keys))


def _side(data: Data, event: Event, cuts: list[tuple[Any, ...]]) -> str:
    side = sum(_key(data, event) >= cut for cut in cuts)
    return "segment=" + ("1-train", "2-valid", "3-test")[side]


def _histories(schema: Schema, data: Data, mine: list[Event], event: Event) -> Event:
    row: Event = {}
    for name, history in schema.histories.items():
        entries = earlier(schema, mine, event)
        condition = data.prepare.history_filter.get(name)
        if condition:
            entries = [other for other in entries if other[condition]]
            if history.action_time:  # being in the history tells the action: by the time it became known
                known = [other for other in entries if other["known"] < event["time"]]
                newest = np.argsort([max(other["known"], other["time"]) for other in known], kind="stable")
                entries = [known[place] for place in sorted(newest[-history.max_length :])]
        row |= _lists(schema, f"history.{name}", entries[-history.max_length :])
    return row


def _statics(schema: Schema, event: Event) -> Event:
    return {name: event[spec.source or name] for name, spec in schema.static().items()}


def _lists(schema: Schema, group: str, entries: list[Event]) -> Event:
    return {n: [e[spec.source or n] for e in entries] for n, spec in schema.columns.items() if spec.group == group}


def _ordered(schema: Schema, row: Event) -> Event:
    return {name: row[name] for name in schema.columns}


def _day(event: Event) -> str:
    return f"dt={datetime.fromtimestamp(event['time'], UTC).date()}"
