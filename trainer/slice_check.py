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
    known = [name for name, column in schema.columns.items() if _can_slice(schema, name, column)]
    problems = []
    if field not in known:
        problems.append(
            f"telemetry.slice_by = '{field}' → an input column of kind id or bucket with one value a row or an "
            f"example, and never the user → one of: {', '.join(known) or 'there is none'}"
        )
    elif schema.columns[field].kind == "bucket" and telemetry.slice_values:
        problems.append(
            f"telemetry.slice_values with slice_by = '{field}' → the slices of a bucket are its buckets → drop them"
        )
    if len(set(telemetry.slice_values)) > MOST - 1:
        problems.append(
            f"telemetry.slice_values has {len(set(telemetry.slice_values))} values → at most {MOST - 1}, and all "
            "others together → keep the ones to watch"
        )
    return problems


def _can_slice(schema: Schema, name: str, column: Column) -> bool:
    """Labels of metrics are no place for a user's id."""
    in_place = column.group in ("", schema.supervised_group) and column.role in INPUT_ROLES
    return in_place and column.kind in ("id", "bucket") and name != schema.user
