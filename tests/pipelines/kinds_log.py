"""A log that holds every kind of field, the schema and settings that read it, and the same events derived in Python."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.config import Data, Prepare
from pipelines.prepare import PrepareReport, prepare
from pipelines.schema import Column, History, Schema, Task
from tests.pipelines.prepare_reference import MIDNIGHT, Event

DAY = 86_400
LOG_TYPES = {
    "user": pa.large_string(), "account": pa.int64(), "age": pa.float64(), "interests": pa.list_(pa.int32()),
    "taste": pa.list_(pa.float32(), 3), "request": pa.int64(), "time": pa.int64(), "load": pa.float32(),
    "device": pa.dictionary(pa.int8(), pa.string()), "item": pa.int64(), "brand": pa.string(), "bot": pa.bool_(),
    "words": pa.large_list(pa.large_string()), "price": pa.float64(), "image": pa.list_(pa.float32(), 2),
    "sound": pa.list_(pa.float32()), "rating": pa.int8(),
}  # fmt: skip
LOG_SCHEMA = pa.schema(list(LOG_TYPES.items()))
DERIVE = {
    "ts": "to_timestamp(time) AT TIME ZONE 'UTC'",
    "hour": "hour(ts)",
    "weekday": "isodow(to_timestamp(time) AT TIME ZONE 'America/Sao_Paulo')",
    "liked": "rating > 3",
    "rated": "CASE WHEN rating IS NOT NULL THEN rating >= 3 END",
    "pence": "(price * 100)::BIGINT",
    "first_word": "words[1]",
    "pair": "[price, coalesce(rating, 0)]::FLOAT[2]",
    "upper_words": "list_transform(words, lambda w: upper(w))",
    "weight": "CASE WHEN brand = 'acme' THEN 2.5 ELSE 1 END::DOUBLE",
}
FILTER = "NOT bot AND item <> 13"


def item_fields(prefix: str, group: str, shared: bool) -> dict[str, Column]:
    """Every kind in a list group."""

    def column(name: str, kind: str, **more: Any) -> tuple[str, Column]:
        if shared and kind in ("id", "ids", "bucket"):
            more["shares"] = name
        source = more.pop("source", name)
        fields = {"role": "item", "kind": kind, "group": group, "source": source} | more
        return f"{prefix}{name}", Column.model_validate(fields)

    return dict(
        [
            column("item", "id"),
            column("brand", "id"),
            column("words", "ids"),
            column("loud", "ids", source="upper_words"),
            column("price_range", "bucket", boundaries=(1.0, 2.5, 7.0), source="price"),
            column("price", "dense"),
            column("pence", "dense"),
            column("image", "vector", size=2),
            column("pair", "vector", size=2),
            column("sound", "vector", size=3),
            column("first_word", "id"),
        ]
    )


SCHEMA = Schema(
    user="user",
    columns={
        "user": Column(role="user", kind="id"),
        "account": Column(role="user", kind="id"),
        "age": Column(role="user", kind="bucket", boundaries=(18.0, 30.0)),
        "interests": Column(role="user", kind="ids"),
        "taste": Column(role="user", kind="vector", size=3),
        "request": Column(role="request", kind="id"),
        "time": Column(role="time", kind="time"),
        "when": Column(role="key", kind="time", source="ts"),
        "device": Column(role="context", kind="id"),
        "hour": Column(role="context", kind="id"),
        "weekday": Column(role="context", kind="id"),
        "load": Column(role="context", kind="dense"),
    }
    | item_fields("", "candidates", shared=False)
    | {
        "liked": Column(role="label", kind="dense", group="candidates"),
        "rated": Column(role="label", kind="dense", group="candidates"),
        "weight": Column(role="weight", kind="dense", group="candidates"),
    }
    | item_fields("h_", "history.seen", shared=True)
    | {
        "h_rating": Column(role="action", kind="id", group="history.seen", source="rating"),
        "h_stars": Column(role="action", kind="dense", group="history.seen", source="rating"),
        "h_hour": Column(role="context", kind="id", group="history.seen", source="hour"),
        "h_device": Column(role="context", kind="id", group="history.seen", source="device"),
        "h_time": Column(role="time", kind="time", group="history.seen", source="time"),
        "liked_item": Column(role="item", kind="id", group="history.likes", source="item", shares="item"),
        "liked_time": Column(role="time", kind="time", group="history.likes", source="time"),
    },
    histories={
        "seen": History(max_length=8, time="h_time"),
        "likes": History(max_length=3, time="liked_time"),
    },
    tasks={"liked": Task(label="liked", weight="weight"), "rated": Task(label="rated", space="liked")},
)
SETTINGS: dict[str, Any] = {
    "request": "request",
    "derive": DERIVE,
    "filter": FILTER,
    "history_filter": {"likes": "liked"},
    "tie_keys": ("pence", "item"),
}


def make_events(seed: int, requests: int = 160, users: int = 15) -> list[Event]:
    rng = random.Random(seed)

    def floats(count: int) -> list[float]:
        """That float32 holds, so that rows read back are equal."""
        return [rng.choice([0.5, -1.25, 3.0]) for _ in range(count)]

    events = []
    for request in range(requests):
        user = rng.randrange(users)
        time = MIDNIGHT + rng.choice([-DAY, -3, 0, 7_200, 40_000, DAY - 1, DAY]) + rng.randrange(3)
        for item in rng.sample(range(40), rng.randint(1, 3)):
            events.append(
                {
                    "user": f"u{user}",
                    "account": 2**40 + user,
                    "age": rng.choice([None, 17.5, 18.0, 44.0]),
                    "interests": rng.choice([None, [], [3], [1, 2, None]]),
                    "taste": rng.choice([None, floats(3)]),
                    "request": request,
                    "time": time,
                    "device": rng.choice(["phone", "tv", None]),
                    "load": rng.choice([None, 0.25, 8.0]),
                    "item": item,
                    "brand": rng.choice(["acme", "böb", "", None]),
                    "words": rng.choice([None, [], ["red"], ["blue", None, "ö"]]),
                    "price": rng.choice([0.99, 1.0, 2.5, 20.0]),
                    "image": rng.choice([None, floats(2)]),
                    "sound": rng.choice([None, floats(3)]),
                    "rating": rng.choice([None, 1, 3, 5]),
                    "bot": rng.choice([None, True, *[False] * 8]),
                }
            )
    rng.shuffle(events)
    return events


def derive(event: Event) -> Event:
    """DERIVE in Python."""
    moment = datetime.fromtimestamp(event["time"], UTC)
    rating, words = event["rating"], event["words"]
    return event | {
        "ts": moment.replace(tzinfo=None),
        "hour": moment.hour,
        "weekday": moment.astimezone(ZoneInfo("America/Sao_Paulo")).isoweekday(),
        "liked": None if rating is None else rating > 3,
        "rated": None if rating is None else rating >= 3,
        "pence": round(event["price"] * 100),
        "first_word": words[0] if words else None,
        "pair": [pytest.approx(event["price"], rel=1e-6), rating or 0],
        "upper_words": None if words is None else [None if w is None else w.upper() for w in words],
        "weight": 2.5 if event["brand"] == "acme" else 1.0,
    }


def passing(events: list[Event]) -> list[Event]:
    """Those that FILTER lets pass, with derived columns."""
    return [derive(event) for event in events if event["bot"] is False and event["item"] != 13]


def write(events: list[Event], folder: Path, files: int = 3) -> Path:
    folder.mkdir(parents=True)
    for index in range(files):
        part = events[index * len(events) // files : (index + 1) * len(events) // files]
        pq.write_table(pa.Table.from_pylist(part, LOG_SCHEMA), folder / f"{index}.parquet", row_group_size=50)
    return folder


def run(log: Path | str, out: Path, schema: Schema = SCHEMA, **settings: Any) -> tuple[PrepareReport, Data]:
    data = Data(
        rows=str(out), prepare=Prepare(log=str(log), **(SETTINGS | settings)), global_batch=16, window_batches=2
    )
    return prepare(schema, data, out), data


def by_request(rows: list[Event]) -> list[Event]:
    return sorted(rows, key=lambda row: row["request"])
