"""The run directory: where everything of a run is, and the one place that knows the names.

    config.toml (resolved, a valid --config) · plan.txt plan.json · env.json · train.log
    metrics.jsonl · tensorboard/ · consumed/ · profiles/ gate.json (with [data.gate])
    goodput.json (where the time went) · prometheus_targets.json (of a run that goes on)
    plan_cache/ (footers of the data; may be removed between runs)
    profile/ (traces of a few steps, by --profile)
    report.html (curves and tables for a browser; written at the end and by `tokenformer report`)
    quarantine/ (bad rows, where data.on_bad_row says so)
    spikes/ (batches around a spike of the loss, and bad steps)
    checkpoints/step_00002000/ (complete only when its COMMIT file exists; elsewhere where [checkpoint] store says so)

A path of a file system that every rank sees. Files are replaced whole (temporary file, fsync, rename), so that a reader
never sees half of one.
"""

from __future__ import annotations

import json
import logging
import os
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from trainer.checkpoint.folder import COMMIT, Location, StepDir, below, located, spoken, step_dirs, step_name
from trainer.errors import CheckpointError, ConfigError

log = logging.getLogger(__name__)

Resume = Literal["never", "auto", "must"]


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replaces `path` by `content` in one go; durable when this returns."""
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    fsync_directory(path.parent)


def fsync_directory(path: Path) -> None:
    """Makes the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def naming(path: Path | str) -> Iterator[None]:
    """An OSError of what is done inside says which file it is of: that of a write alone does not."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


class RunDir:
    """Names and atomic writes; only rank 0 (or the launcher) writes through it, checkpoints apart.

    store: `[checkpoint] store` of the run; None = what its config.toml says.
    """

    def __init__(self, path: Path | str, store: str | None = None) -> None:
        self.path = Path(path)
        self._store = store
        self.config = self.path / "config.toml"
        self.plan_text = self.path / "plan.txt"
        self.plan_json = self.path / "plan.json"
        self.env = self.path / "env.json"
        self.train_log = self.path / "train.log"
        self.metrics = self.path / "metrics.jsonl"
        self.goodput = self.path / "goodput.json"
        self.prometheus_targets = self.path / "prometheus_targets.json"
        self.tensorboard = self.path / "tensorboard"
        self.consumed = self.path / "consumed"
        self.plan_cache = self.path / "plan_cache"
        self.profiles = self.path / "profiles"
        self.gate = self.path / "gate.json"
        self.quarantine = self.path / "quarantine"
        self.profile = self.path / "profile"
        self.spikes = self.path / "spikes"
        self.report = self.path / "report.html"

    def recorded_train(self) -> dict[str, Any]:
        """`[train]` of the config.toml that an earlier start wrote; empty where there is none that can be read: whoever
        needs the config says what is wrong with it."""
        try:
            found: dict[str, Any] = tomllib.loads(self.config.read_text(encoding="utf-8")).get("train", {})
        except (OSError, ValueError):
            return {}
        return found

    @cached_property
    def checkpoints(self) -> Location:
        """Where they are."""
        store = self._store
        if store is None and self.config.is_file():
            try:
                store = tomllib.loads(self.config.read_text(encoding="utf-8")).get("checkpoint", {}).get("store", "")
            except (OSError, ValueError):  # whoever needs the config says what is wrong with it
                store = ""
        return located(store) if store else self.path / "checkpoints"

    def prepare(self, resume: Resume) -> Location | None:
        """Makes the directory; returns the checkpoint to go on from, or None to begin at the beginning. Once a run,
        before anything is written.

        Raises ConfigError: not a usable directory, or not empty with `never`. CheckpointError: `must` without a
        complete checkpoint.
        """
        try:
            held = sorted(entry.name for entry in self.path.iterdir()) if self.path.exists() else []
            if held and resume == "never":
                raise ConfigError(
                    f"run directory {self.path} holds {', '.join(held[:3])}{' …' if len(held) > 3 else ''} → a new "
                    "run needs an empty "
                    "one → add --resume auto to go on with it, or name another with --run-dir"
                )
            for folder in (self.path, self.consumed, self.checkpoints):
                if isinstance(folder, Path):
                    folder.mkdir(parents=True, exist_ok=True)
            if resume == "never" and (there := self.step_dirs()):
                raise ConfigError(
                    f"[checkpoint] store = '{spoken(self.checkpoints)}' holds {there[-1].name} → a store is one run's "
                    "alone → name another, or go on with that run by --resume auto"
                )
        except OSError as error:
            raise ConfigError(
                f"run directory {self.path}: {error.strerror} → it must be a directory we can write → choose another "
                "--run-dir"
            ) from error
        return self._checkpoint_to_resume(resume)

    def _checkpoint_to_resume(self, resume: Resume) -> Location | None:
        if resume == "never":
            return None
        latest = self.require_latest() if resume == "must" else self.latest()
        if incomplete := self._incomplete():
            log.warning("ignored: checkpoints without %s, their writing was interrupted: %s", COMMIT, incomplete)
        log.info("resume: %s", f"from {spoken(latest)}" if latest else "no complete checkpoint yet: from the beginning")
        return latest

    def require_latest(self) -> Location:
        """The newest complete checkpoint. Raises CheckpointError when there is none."""
        latest = self.latest()
        if latest is None:
            incomplete = self._incomplete()
            named = f" (without {COMMIT}: {incomplete})" if incomplete else ""
            raise CheckpointError(
                f"run directory {self.path} has no complete checkpoint{named} → one is needed here → "
                "name the run directory that has one, or train anew with --resume auto"
            )
        return latest

    def _incomplete(self) -> str:
        return ", ".join(found.name for found in self.step_dirs() if not found.complete)

    def step_dir(self, step: int) -> Location:
        """Where the checkpoint of this step belongs."""
        return below(self.checkpoints, step_name(step))

    def step_dirs(self) -> list[StepDir]:
        """Everything in the store that is named like a checkpoint, oldest step first."""
        return step_dirs(self.checkpoints)

    def latest(self) -> Location | None:
        """The newest complete checkpoint."""
        complete = [found.path for found in self.step_dirs() if found.complete]
        return complete[-1] if complete else None

    def write_text(self, path: Path, text: str) -> None:
        """One of the files above, whole."""
        write_atomic(path, text)

    def write_json(self, path: Path, value: Any) -> None:
        """One of the files above, whole."""
        write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
