"""Settings of runs: what differs between them; of one alone, what it set otherwise than the default."""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from trainer.report.formats import plain
from trainer.report.learning import mapping
from trainer.report.read import Run
from trainer.report.summary import Table, spoken
from trainer.telemetry.words import UNKNOWN


def differences(runs: Sequence[Run]) -> Table:
    """Keys whose values are not the same in every run that has a config.toml."""
    flat = [_flat(run.config) for run in runs]
    keys = list(dict.fromkeys(key for of in flat for key in of))
    rows = [[key, *(of.get(key, UNKNOWN) for of in flat)] for key in keys]
    rows = [row for row in rows if len(set(row[1:])) > 1]
    return Table(["key", *(run.name for run in runs)], rows)


def not_default(run: Run) -> Table:
    """Keys of every section but the schema whose values are not the default."""
    from trainer.config import SECTIONS  # noqa: PLC0415 - what follows it is needed by no other part of a page

    rows = []
    for name, section in SECTIONS.items():
        if name != "schema":
            found = mapping(run.config.get(name))
            rows += [[f"{name}.{key}", value] for key, value in _flat(_otherwise(found, section)).items()]
    return Table(["key", "value"], rows)


def _otherwise(found: dict[str, Any], section: type[BaseModel] | None) -> dict[str, Any]:
    """What of a table of the file is not as its class has it by default."""
    kept: dict[str, Any] = {}
    for key, value in found.items():
        spec = section.model_fields.get(key) if section is not None else None
        inner, many = _inner(spec.annotation) if spec is not None else (None, False)
        if isinstance(value, dict) and inner is not None:
            below = (
                {name: _otherwise(mapping(of), inner) for name, of in value.items()}
                if many
                else _otherwise(value, inner)
            )
            kept[key] = below
        elif spec is None or _plain(_default(spec)) != _plain(value):
            kept[key] = value
    return kept


def _default(spec: Any) -> Any:
    value = spec.default_factory() if spec.default_factory else spec.default
    return PydanticUndefined if spec.is_required() else value


def _plain(value: Any) -> Any:
    """Tuples as the lists that TOML has."""
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _inner(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """The class behind a key that is a table, and whether there is one a name."""
    if get_origin(annotation) is dict:
        return _inner(get_args(annotation)[1])[0], True
    options = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    return next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None), False


def _flat(value: dict[str, Any], path: str = "") -> dict[str, str]:
    """{"data.global_batch": "32"}; keys of stores are not shown."""
    found: dict[str, str] = {}
    for key, inner in value.items():
        name = f"{path}.{key}" if path else str(key)
        if isinstance(inner, dict):
            found |= _flat(inner, name)
        else:
            found[name] = plain(_masked(inner), 300)
    return found


def _masked(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_masked(item) for item in value]
    return spoken(value) if isinstance(value, str) else value
