"""Pydantic's findings as the lines a user reads: value → rule → remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from embeddings.config import nearest_sharding
from trainer.config_overrides import Key, _model_in

# Pydantic's words for a type, in the words of a TOML file.
RULES = {
    "string_type": "must be a string",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "tuple_type": "must be an array: [a, b]",
    "dict_type": "must be a table",
    "model_type": "must be a table",
}


def unknown_key(key: str, known: Iterable[str], where: str) -> str:
    """One line for a key nobody reads, with the nearest known one."""
    name = key.rpartition(".")[2]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    remedy = f"did you mean '{near[0]}'?" if near else f"remove it from {where}"
    listed = ", ".join(sorted(known))
    return f"unknown key '{key}' in {where} → keys here are {listed} → {remedy}"


def explain(
    error: ValidationError, section: str, model: type[BaseModel], where: str, typed: dict[Key, str]
) -> list[str]:
    """Every finding of one section, one line each; findings about the alternatives of one value become one line."""
    found: dict[Key, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        key = (section, *_real_keys(detail, model))
        found.setdefault(key, []).append(detail)
    lines: list[str] = []
    for key, details in found.items():
        if details[0]["type"] == "value_error":  # a section's own check: each of its lines says value, rule and remedy
            own = details[0]["msg"].removeprefix("Value error, ").splitlines()
            lines += [f"[{'.'.join(key)}] {problem}" for problem in own]
        else:
            lines.append(_line(key, details, model, where, typed))
    return lines


def _line(key: Key, details: list[ErrorDetails], model: type[BaseModel], where: str, typed: dict[Key, str]) -> str:
    detail, dotted = details[0], ".".join(key)
    source = f"the command line ({typed[key]})" if key in typed else where
    if detail["type"] == "extra_forbidden":
        return unknown_key(dotted, _keys_beside(model, key[1:]), source)
    if detail["type"] == "missing":
        return f"'{dotted}' is not given in {source} → it has no default → add {key[-1]} to [{'.'.join(key[:-1])}]"
    if dotted.startswith("embeddings.") and key[-1] == "sharding" and isinstance(detail["input"], str):
        return f"{dotted} = {_shown(detail['input'])} → {nearest_sharding(detail['input'])}: set it in {source}"
    rule = " or ".join(dict.fromkeys(_rule(each) for each in details))
    return f"{dotted} = {_shown(detail['input'])} → {rule} → correct it in {source}"


def _rule(detail: ErrorDetails) -> str:
    return RULES.get(detail["type"], detail["msg"].replace("Input should be", "must be"))


def _shown(value: Any) -> str:
    """A value as TOML would write it, short."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(_shown(item) for item in value)}]"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _real_keys(detail: ErrorDetails, model: type[BaseModel]) -> list[str]:
    """Pydantic's location without the names of union members, which are no keys of the file."""
    keys: list[str] = []
    at: Any = model
    for part in detail["loc"]:
        section = _model_in(at)
        if section is not None:
            if str(part) not in section.model_fields and detail["type"] != "extra_forbidden":
                break
            at = section.model_fields[str(part)].annotation if str(part) in section.model_fields else None
        elif get_origin(at) is dict:
            at = get_args(at)[1]
        elif get_origin(at) is tuple:
            keys.append(f"[{part}]")
            continue
        else:
            break
        keys.append(str(part))
    return keys


def _keys_beside(model: type[BaseModel], keys: tuple[str, ...]) -> list[str]:
    """Names that are known where the last of `keys` stands."""
    at: Any = model
    for key in keys[:-1]:
        section = _model_in(at)
        at = section.model_fields[key].annotation if section else get_args(at)[1]
    section = _model_in(at)
    return list(section.model_fields) if section else []
