"""When labels are known: the attribution windows of `[data.prepare]`, and `as_of`. Times are int64 microseconds."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from pipelines.config import Prepare
from pipelines.errors import SchemaError
from pipelines.schema import Schema

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
WINDOW = re.compile(r"(\d+)([smhd])")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def check_labels(schema: Schema, settings: Prepare) -> Iterator[str]:
    """Every attribution window and time that cannot be meant, a line each."""
    labels = sorted(name for name, column in schema.columns.items() if column.role == "label")
    for name, text in settings.attribution.items():
        if name not in labels:
            yield f"data.prepare.attribution names '{name}' → label columns are {labels} → correct it"
        if not WINDOW.fullmatch(text):
            yield f"data.prepare.attribution of '{name}' is '{text}' → a number with s, m, h or d → as '3d'"
    if settings.as_of and _parse(settings.as_of) is None:
        yield f"data.prepare.as_of '{settings.as_of}' → a time in ISO 8601 → as '2026-11-24T12:00:00Z'"


def windows_of(settings: Prepare) -> dict[str, int]:
    """{label column: microseconds until it is final}."""
    matches = {name: WINDOW.fullmatch(text) for name, text in settings.attribution.items()}
    return {name: int(m[1]) * SECONDS[m[2]] * 1_000_000 for name, m in matches.items() if m}


def parse_time(text: str) -> int:
    """A time in ISO 8601; UTC where it names no zone. Raises SchemaError."""
    time = _parse(text)
    if time is None:
        raise SchemaError([f"as_of '{text}' → a time in ISO 8601 → as '2026-11-24T12:00:00Z'"])
    return (time - EPOCH) // timedelta(microseconds=1)


def show_time(time: int) -> str:
    """The same, the other way."""
    return (EPOCH + timedelta(microseconds=time)).isoformat().replace("+00:00", "Z")


def _parse(text: str) -> datetime | None:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)
