"""state.json: everything of a checkpoint that is not a tensor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, JsonValue

from pipelines.batch import Position
from pipelines.schema import Frozen, Schema
from trainer.checkpoint import manifest
from trainer.checkpoint.folder import Location
from trainer.errors import CheckpointError


class CheckpointState(Frozen):
    """What a run needs, beside its tensors, to go on as if it had never stopped.

    step: optimizer steps done (bad ones included). examples, rows: since the model's birth. position: the last global
    batch done, None before the first. data_schema: what the model was trained on. seed, world_size: of the run that
    saved. resumed_from: the checkpoints this run went on from, oldest first. extra: anything small and JSON that the
    loop keeps.
    """

    format_version: int = manifest.FORMAT_VERSION
    step: int = Field(ge=0)
    examples: int = Field(default=0, ge=0)
    rows: int = Field(default=0, ge=0)
    position: Position | None = None
    data_schema: Schema
    seed: int = 0
    world_size: int = Field(default=1, gt=0)
    bad_steps: int = Field(default=0, ge=0)
    resumed_from: tuple[str, ...] = ()
    extra: Mapping[str, JsonValue] = Field(default_factory=dict)


def read_state(path: Location, commit: manifest.Commit, schema: Schema | None = None) -> CheckpointState:
    """state.json of a complete checkpoint. `schema`: what it is to be used with.

    Raises CheckpointError: not as committed, or with a line per difference of the two schemas.
    """
    state = manifest.read_committed(path, commit, manifest.STATE, CheckpointState)
    differences = [] if schema is None else schema_differences(state.data_schema, schema)
    if differences:
        raise CheckpointError(
            [
                f"checkpoint {path}: {difference} → a checkpoint goes with the schema it was trained on → "
                "use the run's own config.toml, or start a new run directory"
                for difference in differences
            ]
        )
    return state


def schema_differences(saved: Schema, current: Schema) -> list[str]:
    """One phrase per difference that changes what the model means. Where a schema or a column came from does not, nor
    does a key: no model reads it."""
    before, now = _comparable(saved), _comparable(current)
    differences = [
        f"schema.{key} was {before[key]!r} and is {now[key]!r}"
        for key in before
        if not isinstance(before[key], dict) and before[key] != now[key]
    ]
    for section in ("columns", "histories", "tasks"):
        old, new = before[section], now[section]
        differences += [f"schema.{section}.{name} is gone" for name in old.keys() - new.keys()]
        differences += [f"schema.{section}.{name} was not there" for name in new.keys() - old.keys()]
        differences += [
            f"schema.{section}.{name}.{key} was {old[name][key]!r} and is {new[name][key]!r}"
            for name in old.keys() & new.keys()
            for key in old[name]
            if old[name][key] != new[name][key]
        ]
    return sorted(differences)


def _comparable(schema: Schema) -> dict[str, Any]:
    dumped = schema.model_dump(mode="json", exclude={"file": True})
    dumped["columns"] = {n: c for n, c in dumped["columns"].items() if c["role"] != "key" or n == schema.user}
    for column in dumped["columns"].values():
        del column["source"]
    return dumped
