"""A run directory as plain data: what there is of it. Nothing here needs torch; nothing fails for what is missing."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.errors import ConfigError
from trainer.report.lines import Lines, read_lines
from trainer.run_dir import RunDir

_LOG_LINE = re.compile(r"^\d{4}-\d\d-\d\d [\d:,]+ (?P<level>[A-Z]+) (?P<logger>[\w.]+): (?P<text>.*)$")
_STEP = re.compile(r"\bstep (\d+)")
MOST_WARNINGS = 2_000


@dataclass(frozen=True)
class Warned:
    """A line of train.log. step: the newest one that the log had named by then."""

    step: int
    level: str
    text: str


@dataclass(frozen=True)
class Run:
    """name: short, and of this run alone. path: as the user named it. config, plan, env: {} where there is none.
    dense_parameters: of the tower, from the newest checkpoint. notes: what could not be read."""

    name: str
    path: str
    lines: Lines
    config: dict[str, Any] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)
    env: dict[str, Any] = field(default_factory=dict)
    warned: tuple[Warned, ...] = ()
    dense_parameters: int | None = None
    notes: tuple[str, ...] = ()

    def setting(self, section: str, key: str, otherwise: Any = None) -> Any:
        """Of config.toml."""
        found = self.config.get(section)
        return found.get(key, otherwise) if isinstance(found, dict) else otherwise


def read_runs(paths: Sequence[str]) -> list[Run]:
    """Each once, in the order given. Raises ConfigError with a line for each that is no run directory."""
    paths = list(dict.fromkeys(paths))
    problems = [problem for path in paths if (problem := _problem(Path(path)))]
    if problems:
        raise ConfigError(problems)
    names = [Path(path).absolute().name or path for path in paths]
    short = names if len(set(names)) == len(names) else paths
    return [_read(path, name) for path, name in zip(paths, short, strict=True)]


def _problem(path: Path) -> str:
    run = RunDir(path)
    if run.config.is_file() or run.metrics.is_file():
        return ""
    what = "has neither config.toml nor metrics.jsonl" if path.is_dir() else "is not a directory"
    return f"'{path}' {what} → a run directory that training began in is needed → check --run"


def _read(path: str, name: str) -> Run:
    run_dir = RunDir(path)
    notes: list[str] = []
    lines = read_lines(run_dir.metrics)
    if not run_dir.metrics.is_file():
        notes.append("there is no metrics.jsonl yet")
    if lines.unreadable:
        notes.append(f"{lines.unreadable} lines of metrics.jsonl could not be read and are left out")
    return Run(
        name=name,
        path=path,
        lines=lines,
        config=_parsed(run_dir.config, tomllib.loads, notes),
        plan=_parsed(run_dir.plan_json, json.loads, notes),
        env=_parsed(run_dir.env, json.loads, notes),
        warned=_warnings(run_dir.train_log),
        dense_parameters=_dense_parameters(run_dir),
        notes=tuple(notes),
    )


def _parsed(path: Path, parse: Callable[[str], Any], notes: list[str]) -> dict[str, Any]:
    try:
        value = parse(path.read_text(encoding="utf-8"))
        if isinstance(value, dict):
            return value
        notes.append(f"{path.name} is not what a run writes")
    except FileNotFoundError:
        notes.append(f"there is no {path.name}")
    except (OSError, ValueError, RecursionError):
        notes.append(f"{path.name} could not be read")
    return {}


def _warnings(path: Path) -> tuple[Warned, ...]:
    """Warnings and errors of the log; lines that do not begin one (stack traces) are left out."""
    found, step = [], 0
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                parts = _LOG_LINE.match(line)
                if parts is None:
                    continue
                if named := _STEP.search(parts["text"]):
                    step = min(int(named[1]), 1 << 62)
                if parts["level"] in ("WARNING", "ERROR", "CRITICAL"):
                    found.append(Warned(step, parts["level"].lower(), parts["text"]))
    except OSError:
        return ()
    return tuple(found[-MOST_WARNINGS:])


def _dense_parameters(run_dir: RunDir) -> int | None:
    """From the list of a checkpoint's tensors; of a store that is not a disk, nothing is fetched for it."""
    try:
        latest = run_dir.latest() if isinstance(run_dir.checkpoints, Path) else None
        if not isinstance(latest, Path):
            return None
        tensors = json.loads((latest / "metadata.json").read_text(encoding="utf-8"))["tensors"]
        total = 0
        for name, tensor in tensors.items():
            if name.startswith("dense/"):
                count = 1
                for size in tensor["size"]:
                    count *= int(size)
                total += count
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return total or None
