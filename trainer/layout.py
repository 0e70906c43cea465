"""From the schema to what the ranker is built for: which column fills which input field.

Called once at start-up by the recommender's builder; what it returns is fixed for the run.
"""

from __future__ import annotations

from dataclasses import dataclass

from embeddings.specs import TableSpec
from model.inputs import FieldSpec, HistorySpec, InputSpec
from pipelines.schema import INPUT_ROLES, Column, Schema


@dataclass(frozen=True)
class Layout:
    """Input fields and their columns. static and candidate: {field: column}; event and action: {history: {field:
    column}}."""

    spec: InputSpec
    static: dict[str, str]
    candidate: dict[str, str]
    event: dict[str, dict[str, str]]
    action: dict[str, dict[str, str]]
    table_of: dict[str, str]


def _field_name(name: str, column: Column) -> str:
    """The name a history column's field goes by: its candidate's where it shares one, else what the log calls it."""
    return column.shares or column.source or name


def _is_input(column: Column) -> bool:
    return column.role in INPUT_ROLES and column.kind != "time"


def make_layout(schema: Schema, tables: dict[str, TableSpec]) -> Layout:
    """Fields in column order; behaviours and candidates share `event` fields, candidates' first."""

    def field_spec(field: str, column: str) -> FieldSpec:
        kind = schema.columns[column].kind
        if kind in ("dense", "vector"):
            return FieldSpec(field, schema.columns[column].size if kind == "vector" else 1, dense=True)
        return FieldSpec(field, tables[schema.table_of(column)].width)

    static = {name: name for name, c in schema.static().items() if _is_input(c)}
    candidate = {name: name for name, c in schema.candidates().items() if _is_input(c) and c.role != "action"}
    event: dict[str, dict[str, str]] = {}
    action: dict[str, dict[str, str]] = {}
    for history in schema.histories:
        columns = {name: c for name, c in schema.history(history).items() if _is_input(c)}
        event[history] = {_field_name(n, c): n for n, c in columns.items() if c.role != "action"}
        action[history] = {_field_name(n, c): n for n, c in columns.items() if c.role == "action"}
    event_columns = dict(candidate)
    action_columns: dict[str, str] = {}
    for history in schema.histories:
        for field, column in event[history].items():
            event_columns.setdefault(field, column)
        for field, column in action[history].items():
            action_columns.setdefault(field, column)
    spec = InputSpec(
        static=tuple(field_spec(f, c) for f, c in static.items()),
        event=tuple(field_spec(f, c) for f, c in event_columns.items()),
        action=tuple(field_spec(f, c) for f, c in action_columns.items()),
        histories=tuple(
            HistorySpec(name, tuple(event[name]), tuple(action[name]), history.max_length)
            for name, history in schema.histories.items()
        ),
        candidate=tuple(candidate),
        tasks=tuple(schema.tasks),
        supervision=schema.supervision,
        supervised_history=schema.supervised_history,
    )
    columns_of_tables = {c: t for t, names in schema.table_columns().items() for c in names}
    return Layout(spec, static, candidate, event, action, columns_of_tables)
