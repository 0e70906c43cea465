"""The JSON files and the README of an export: how a request row becomes the ranker's input."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from embeddings.specs import MISSING_ROW, RESERVED_ROWS, UNKNOWN_ROW, TableSpec, seed_of
from pipelines.schema import INPUT_ROLES, Column, Schema
from trainer.checkpoint.state import CheckpointState
from trainer.checkpoint_verbs.output import file_name
from trainer.config import Config
from trainer.layout import make_layout

FORMAT_VERSION = 1
NEEDED = (*INPUT_ROLES, "time")


def schema_json(
    state: CheckpointState,
    config: Config,
    specs: dict[str, TableSpec],
    exported: dict[str, TableSpec],
    checkpoint: str,
) -> dict[str, Any]:
    """schema.json, in plain values. exported: the tables whose rows are written; the others say so."""
    schema, layout = config.schema, make_layout(config.schema, specs)
    columns = {name: column for name, column in schema.columns.items() if column.role in NEEDED}
    return {
        "format_version": FORMAT_VERSION,
        "checkpoint": checkpoint,
        "step": state.step,
        "examples": state.examples,
        "data_through": state.extra.get("data_through"),
        "user": schema.user,
        "supervision": schema.supervision,
        "supervised_history": schema.supervised_history,
        "ties": schema.ties,
        "time_unit": schema.time_unit,
        "columns": {name: _column(schema, name, column) for name, column in columns.items()},
        "histories": {name: history.model_dump(mode="json") for name, history in schema.histories.items()},
        "tasks": {name: {"product_of": list(task.product_of)} for name, task in schema.tasks.items()},
        "tables": {name: _table(spec, name in exported) for name, spec in specs.items()},
        "inputs": {
            "static": layout.static,
            "candidates": layout.candidate,
            "histories": {name: {"event": layout.event[name], "action": layout.action[name]} for name in layout.event},
        },
    }


def borders(schema: Schema) -> dict[str, list[float]]:
    """borders.json."""
    return {name: list(column.boundaries) for name, column in schema.columns.items() if column.kind == "bucket"}


def model_json(config: Config, specs: dict[str, TableSpec]) -> dict[str, Any]:
    """model.json: what model.rankers.build_ranker is called with."""
    spec = asdict(make_layout(config.schema, specs).spec)
    return {"config": config.model.model_dump(mode="json"), "spec": spec}


def _column(schema: Schema, name: str, column: Column) -> dict[str, Any]:
    has_table = column.role in INPUT_ROLES and column.kind in ("id", "ids", "bucket")
    keys = ("role", "kind", "group", "size", "default", "train_only", "serve_as")
    return {key: getattr(column, key) for key in keys} | {"table": schema.table_of(name) if has_table else None}


def _table(spec: TableSpec, written: bool) -> dict[str, Any]:
    """hash_seed: of `mix`, for a hash the row's, for a vocabulary or managed table the bucket's."""
    name = f"{file_name(spec.name)}.parquet"
    described: dict[str, Any] = {
        "file": f"tables/{name}" if written else None,
        "rows": spec.rows,
        "width": spec.width,
        "dtype": spec.dtype,
        "mapping": spec.mapping,
        "reserved_rows": {"missing": MISSING_ROW, "unknown": UNKNOWN_ROW},
        "first_row": RESERVED_ROWS,
    }
    if spec.mapping == "hash":
        described["hash_seed"] = seed_of("hash", spec.name)
    if spec.is_bucketed:
        described |= {
            "id_map": f"id_maps/{name}" if written else None,
            "buckets": spec.buckets,
            "rows_per_bucket": spec.rows_per_bucket,
            "bucket_seed": seed_of("bucket", spec.name),
        }
    return described


MAPPINGS = {
    "identity": "id + 2, unknown outside 0 … rows − 3",
    "hash": "2 + mix(id, hash_seed) mod (rows − 2)",
    "vocabulary": "as in id_maps/, unknown where it is not there",
    "managed": "as in id_maps/, unknown where it is not there",
}

README = """# An exported model

Step {step}, {examples:,} examples, of checkpoint {checkpoint}. Written by `tokenformer checkpoint unshard`; nothing of
tokenformer is needed to read it.

| file | holds |
|---|---|
| `schema.json` | columns of a request row, tables and how ids become rows of them, tasks, the tower's inputs |
| `borders.json` | {{bucketised column: its boundaries}}; a value on a boundary belongs to the bucket above |
| `model.json` | the tower's config and its input: `model.rankers.build_ranker(spec, config)` |
| `tower.safetensors` | the tower's parameters by their names, float32 |
| `tables/TABLE.parquet` | every row in order: `row`, `raw_id` (null: nobody's, or hashed), `reserved`, `vector` |
| `id_maps/TABLE.parquet` | `id`, `row`: of tables whose ids were given rows |

Row 0 of a table is that of a missing id (null), row 1 that of an unknown one. Strings are hashed to ids first: FNV-1a
64 of their UTF-8, read as a signed integer. Dense values and vectors go in as they are: nothing is normalised.

| table | rows | width | row of an id | of columns |
|---|---|---|---|---|
{tables}

How to score from these files, with code: docs/serving.md of tokenformer.
"""


def readme(state: CheckpointState, specs: dict[str, TableSpec], exported: dict[str, TableSpec], checkpoint: str) -> str:
    """README.md."""
    columns = state.data_schema.table_columns()
    lines = [
        f"| {name}{'' if name in exported else ' (not written)'} | {spec.rows:,} | {spec.width} | "
        f"{spec.mapping}: {MAPPINGS[spec.mapping]} | {', '.join(columns.get(name, ()))} |"
        for name, spec in specs.items()
    ]
    return README.format(step=state.step, examples=state.examples, checkpoint=checkpoint, tables="\n".join(lines))
