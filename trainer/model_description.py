"""What a checkpoint says about the model it holds, so that another model can begin with it: which rows are which ids',
and which fields the parameters of the tower are of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, JsonValue, ValidationError

from embeddings.specs import TableSpec, table_specs
from model.parameter_axes import ParameterAxes, parameter_axes
from pipelines.schema import Frozen, Schema
from trainer.checkpoint.folder import Location
from trainer.checkpoint.state import CheckpointState
from trainer.config import Config, load_config
from trainer.errors import CheckpointError, ConfigError
from trainer.layout import make_layout
from trainer.run_dir import RunDir

RANKER = "scorer.ranker."  # what names of the tower's parameters begin with


class TableDescription(Frozen):
    """As in `[embeddings.tables.NAME]`, resolved. boundaries: of bucketised columns."""

    rows: int
    width: int
    mapping: str
    buckets: int = 0
    optimizer: str
    boundaries: tuple[float, ...] = ()

    @property
    def rows_per_bucket(self) -> int:
        return self.rows // self.buckets


class Axes(Frozen):
    """See ParameterAxes."""

    parts: tuple[tuple[str, int], ...]
    axis: int
    family: str = ""
    across: tuple[tuple[str, int], ...] = ()


class ModelDescription(Frozen):
    """tables: by name. axes: of the dense parameters that are of fields, histories or tasks."""

    tables: dict[str, TableDescription] = Field(default_factory=dict)
    axes: dict[str, Axes] = Field(default_factory=dict)


def describe(config: Config, specs: dict[str, TableSpec] | None = None) -> ModelDescription:
    """Of the model that a run file makes. specs: its tables, where they are known."""
    specs = table_specs(config.schema, config.embeddings) if specs is None else specs
    spec = make_layout(config.schema, specs).spec
    return ModelDescription(
        tables={name: _table(table, config.schema) for name, table in specs.items()},
        axes={f"{RANKER}{name}": _axes(axes) for name, axes in parameter_axes(spec, config.model).items()},
    )


def described(path: Location, state: CheckpointState) -> ModelDescription:
    """Of the model that a checkpoint holds. Those of 0.1.0 say nothing of it: then it is what their run file makes.

    Raises CheckpointError: the description cannot be read, or there is no run file beside an old checkpoint.
    """
    found = state.extra.get("model")
    try:
        return ModelDescription.model_validate_json(_json(found)) if found else describe(_run_file(path))
    except (ValidationError, ConfigError, OSError) as error:
        raise CheckpointError(
            f"checkpoint {path}: what its model is like cannot be read ({type(error).__name__}) → state.json says it, "
            "or in checkpoints of 0.1.0 the run's config.toml → begin with another checkpoint"
        ) from error


def _run_file(path: Location) -> Config:
    """They lie in their run's directory."""
    return load_config(RunDir(Path(path).parent.parent).config)


def _json(value: JsonValue) -> str:
    import json  # noqa: PLC0415 - strict models read tuples from JSON text only

    return json.dumps(value)


def _table(spec: TableSpec, schema: Schema) -> TableDescription:
    columns = [schema.columns[name] for name in schema.table_columns()[spec.name]]
    boundaries: tuple[float, ...] = next((c.boundaries for c in columns if c.kind == "bucket"), ())
    return TableDescription(
        rows=spec.rows,
        width=spec.width,
        mapping=spec.mapping,
        buckets=spec.buckets,
        optimizer=spec.optimizer,
        boundaries=boundaries,
    )


def _axes(found: ParameterAxes) -> Axes:
    return Axes(parts=found.parts, axis=found.axis, family=found.family, across=found.across)


def to_json(description: ModelDescription) -> Any:
    """For state.json."""
    return description.model_dump(mode="json")
