"""A schema as a TOML text for people: one line a column, with what was guessed beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.schema import Schema


def schema_toml(schema: Schema, notes: Mapping[str, str], head: Sequence[str]) -> str:
    """`[schema]` with `# guess: …` behind each column that has a note; `head`: lines of comment at the top."""
    lines = [*(f"# {line}" for line in head), "", "[schema]"]
    for key in ("user", "supervision", "supervised_history", "ties", "time_unit"):
        if getattr(schema, key):
            lines.append(f"{key} = {json.dumps(getattr(schema, key))}")
    lines += ["", "[schema.columns]"]
    for name, column in schema.columns.items():
        note = f"  # guess: {notes[name]}" if name in notes else ""
        lines.append(f"{_key(name)} = {_inline(column.model_dump(exclude_defaults=True))}{note}")
    for history, spec in schema.histories.items():
        lines += ["", f"[schema.histories.{_key(history)}]  # guess: lists of equal length over the sample"]
        lines += [f"{key} = {json.dumps(value)}" for key, value in spec.model_dump().items() if value]
    for task, target in schema.tasks.items():
        lines += ["", f"[schema.tasks.{_key(task)}]"]
        lines += [f"{key} = {json.dumps(value)}" for key, value in target.model_dump(exclude_defaults=True).items()]
    return "\n".join(lines) + "\n"


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name, ensure_ascii=False)


def _inline(values: Mapping[str, Any]) -> str:
    pairs = (f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in values.items())
    return "{ " + ", ".join(pairs) + " }"
