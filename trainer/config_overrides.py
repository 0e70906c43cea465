"""`--section.key value` from the command line, laid over the raw run file before anything is validated."""

from __future__ import annotations

import datetime
import tomllib
import types
from collections.abc import Iterator, Mapping
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel

Key = tuple[str, ...]


def apply_overrides(
    raw: dict[str, Any], overrides: list[str], sections: Mapping[str, type[BaseModel]]
) -> tuple[dict[Key, str], list[str]]:
    """Write every override into `raw`. Returns {key: option as typed}, for errors to name, and problems."""
    typed: dict[Key, str] = {}
    problems: list[str] = []
    for option, value in _pairs(overrides):
        parts = option.lstrip("-").split(".")
        section = parts[0].replace("-", "_")
        if not option.startswith("--") or section not in sections or len(parts) < 2 or not all(parts):
            problems.append(
                f"unknown argument '{option}' → config overrides are --SECTION.KEY VALUE with SECTION one of "
                f"{', '.join(sections)} → see --help for the verb's own options"
            )
            continue
        if value is None:
            problems.append(
                f"'{option}' has no value → an override is {option} VALUE or {option}=VALUE → add the value"
            )
            continue
        path, annotation = _locate(sections[section], parts[1:])
        key = (section, *path)
        if not _write(raw, key, parse_value(value, annotation)):
            problems.append(
                f"'{option}' goes below a value that is not a table → see the run file → correct the option"
            )
        typed[key] = option
    return typed, problems


def parse_value(text: str, annotation: Any = Any) -> Any:
    """A TOML value, or the bare string. Where a string is expected, `3` and `2026-11-20` stay as they were typed."""
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, KeyError):
        return text
    dates = (datetime.date, datetime.time, datetime.datetime)
    return text if isinstance(value, dates) or (annotation is str and not isinstance(value, str)) else value


def _pairs(overrides: list[str]) -> Iterator[tuple[str, str | None]]:
    """`--a.b=1` and `--a.b 1` alike, as (option, value)."""
    waiting = list(overrides)
    while waiting:
        option, equals, value = waiting.pop(0).partition("=")
        if equals or not option.startswith("--"):
            yield option, value if equals else None
        elif waiting and not waiting[0].startswith("--"):
            yield option, waiting.pop(0)
        else:
            yield option, None


def _locate(section: type[BaseModel], parts: list[str]) -> tuple[list[str], Any]:
    """The value's type, and names as the sections spell them: kebab or snake; tables and columns are left alone."""
    at: Any = section
    path = []
    for part in parts:
        model = _model_in(at)
        if model is not None:
            name = part.replace("-", "_")
            at = model.model_fields[name].annotation if name in model.model_fields else Any
        else:
            name = part
            at = get_args(at)[1] if get_origin(at) is dict else Any
        path.append(name)
    return path, at


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The section class behind `Section` or `Section | None`."""
    options = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    return next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)


def _write(raw: dict[str, Any], key: Key, value: Any) -> bool:
    table = raw
    for part in key[:-1]:
        below = table.setdefault(part, {})
        if not isinstance(below, dict):
            return False
        table = below
    table[key[-1]] = value
    return True
