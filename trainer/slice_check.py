"""Which field examples can be sliced by, and by how many values."""

from __future__ import annotations

from pipelines.schema import INPUT_ROLES, Column, Schema
from trainer.config_sections import Telemetry

MOST = 20  # slices, the one of all other values among them


def check_slices(schema: Schema, telemetry: Telemetry) -> list[str]:
    """What is wrong with `slice_by` and `slice_values`."""
    field = telemetry.slice_by
    if not field:
        return ["telemetry.slice_values without telemetry.slice_by → they are values of one field → name it"] * bool(
            telemetry.slice_values
        )
    groups = ("", schema.supervised_group)
    column = schema.columns.get(field)
    problems = []
    if column is None or column.group not in groups or column.kind not in ("id", "bucket") or not _is_read(column):
        known = [
            n for n, c in schema.columns.items() if c.group in groups and c.kind in ("id", "bucket") and _is_read(c)
        ]
        problems.append(
            f"telemetry.slice_by = '{field}' → an input column of kind id or bucket with one value a row or an example "
            f"→ one of: {', '.join(known) or 'there is none'}"
        )
    elif column.kind == "bucket" and telemetry.slice_values:
        problems.append(
            f"telemetry.slice_values with slice_by = '{field}' → the slices of a bucket are its buckets → drop them"
        )
    if len(set(telemetry.slice_values)) > MOST - 1:
        problems.append(
            f"telemetry.slice_values has {len(set(telemetry.slice_values))} values → at most {MOST - 1}, and all "
            "others together → keep the ones to watch"
        )
    return problems


def _is_read(column: Column) -> bool:
    return column.role in INPUT_ROLES
