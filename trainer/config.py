"""The run file: sections composed, defaults < file < command line, every problem reported at once.

Each section's class lives beside the code that reads it; this file only composes them.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import BaseModel, ValidationError

from embeddings.config import Embeddings
from model.config import Model
from pipelines.config import Data
from pipelines.schema import Schema
from pipelines.secrets import REMEDY, RULE, secrets_in
from trainer.config_check import contradictions
from trainer.config_errors import explain, unknown_key
from trainer.config_overrides import apply_overrides
from trainer.config_sections import Checkpoint, Init, Launch, Optim, Telemetry, Train
from trainer.errors import ConfigError

SECTIONS: dict[str, type[BaseModel]] = {
    "schema": Schema,
    "data": Data,
    "embeddings": Embeddings,
    "model": Model,
    "init": Init,
    "optim": Optim,
    "train": Train,
    "checkpoint": Checkpoint,
    "telemetry": Telemetry,
    "launch": Launch,
}


@dataclass(frozen=True)
class Config:
    """A whole run file, resolved: typed, frozen, its schema read in (`schema.file` is then empty)."""

    schema: Schema
    data: Data
    embeddings: Embeddings = field(default_factory=Embeddings)
    model: Model = field(default_factory=Model)
    init: Init = field(default_factory=Init)
    optim: Optim = field(default_factory=Optim)
    train: Train = field(default_factory=Train)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    telemetry: Telemetry = field(default_factory=Telemetry)
    launch: Launch = field(default_factory=Launch)


def load_config(path: str | Path, overrides: list[str] | None = None) -> Config:
    """Read a run file and lay the command line's `--section.key value` over it.

    overrides: as typed: `["--model.num-layers", "6", "--data.sample=0.01"]`; values are TOML, bare words are strings.
    Raises ConfigError with every problem found, one line each.
    """
    run_file = Path(path)
    raw = _read_toml(run_file, "run file")
    problems = [unknown_key(name, list(SECTIONS), run_file.name) for name in raw if name not in SECTIONS]
    raw = {name: value for name, value in raw.items() if name in SECTIONS}
    typed, override_problems = apply_overrides(raw, overrides or [], SECTIONS)
    problems += override_problems
    secrets = [f"{name} holds {what} → {RULE} → {REMEDY}" for name, what in secrets_in(raw)]
    if secrets:  # and nothing else: another line might show the value
        raise ConfigError(secrets)
    schema, schema_problems = _resolve_schema_file(raw.get("schema", {}), run_file)
    problems += schema_problems
    raw["schema"] = schema

    sections: dict[str, Any] = {}
    for name, section in SECTIONS.items():
        try:
            sections[name] = section.model_validate(_tuples(raw.get(name, {})))
        except ValidationError as error:
            problems += explain(error, name, section, run_file.name, typed)
    problems += contradictions(sections)
    if problems:
        raise ConfigError(problems)
    return Config(**sections)


def dump_config(config: Config) -> str:
    """The resolved config as TOML that is itself a valid run file. What is None is left out."""
    resolved = {part.name: getattr(config, part.name).model_dump(exclude_none=True) for part in fields(config)}
    return tomli_w.dumps(_lists(resolved))


def _read_toml(path: Path, what: str) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise ConfigError(f"{what} '{path}' is not a file → a TOML file is needed → check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{what} '{path}' cannot be read: {error} → a readable UTF-8 file is needed → fix it"
        ) from None
    except (ValueError, RecursionError) as error:  # TOMLDecodeError; a number or a nesting beyond the parser's
        raise ConfigError(f"{what} '{path}' is not TOML: {error} → TOML is what is read → fix it there") from None


def _resolve_schema_file(schema: object, run_file: Path) -> tuple[object, list[str]]:
    """`[schema] file = "x.toml"`: its content, with the run file's and command line's own keys laid over it."""
    if not isinstance(schema, dict) or not isinstance(schema.get("file"), str) or not schema["file"]:
        return schema, []
    try:
        content = _read_toml(run_file.parent / schema["file"], "schema file")
    except ConfigError as error:
        return {key: value for key, value in schema.items() if key != "file"}, error.problems
    if set(content) == {"schema"}:
        content = content["schema"]
    return _merged(content, {key: value for key, value in schema.items() if key != "file"}), []


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    both = dict(base)
    for key, value in over.items():
        below = both.get(key)
        both[key] = _merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return both


def _tuples(value: Any) -> Any:
    """TOML arrays as tuples, which is what strict, frozen sections hold."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, tuple) else value
