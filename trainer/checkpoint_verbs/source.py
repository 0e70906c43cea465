"""Which checkpoint an argument means, the run it belongs to, and opening it: the one place of these verbs that does."""

from __future__ import annotations

import re
from pathlib import Path

from trainer.checkpoint.reading import SavedTensors
from trainer.checkpoint.state import CheckpointState, read_state
from trainer.config import Config, load_config
from trainer.errors import CheckpointError, ConfigError
from trainer.run_dir import COMMIT, RunDir

_STEP = re.compile(r"step_\d{8,}")


def find_checkpoint(argument: str) -> Path:
    """The directory of a complete checkpoint: `argument` itself, or the newest one of the run directory it names.

    Raises CheckpointError where it is neither.
    """
    path = Path(argument)
    if (path / COMMIT).is_file():
        return path
    if (path / "metadata.json").exists() or (_STEP.fullmatch(path.name) and path.is_dir()):
        raise CheckpointError(
            f"'{argument}' has no {COMMIT} → a checkpoint is complete only with it, this one's writing was interrupted "
            f"→ use a complete one, see `tokenformer checkpoint list`"
        )
    if (path / "checkpoints").is_dir() or (path / "config.toml").is_file():
        return RunDir(path).require_latest()
    raise CheckpointError(
        f"'{argument}' is neither a checkpoint nor a run directory → a checkpoint is a folder with a {COMMIT} file, a "
        "run directory has checkpoints/ → check the path"
    )


def find_run(argument: str) -> RunDir:
    """A run directory. Raises CheckpointError where it is none, or never had a checkpoint."""
    run = RunDir(Path(argument))
    if not run.checkpoints.is_dir():
        raise CheckpointError(
            f"'{argument}' has no checkpoints/ → every run directory that training began in has one → check --run"
        )
    if not run.step_dirs():
        raise CheckpointError(
            f"run '{argument}' has no checkpoints → one is written every checkpoint.every_minutes and at the end → "
            "let it train, or name another run"
        )
    return run


def checkpoint_of_step(run: RunDir, step: int) -> Path:
    """Raises CheckpointError where the run has no complete checkpoint of that step."""
    found = [step_dir.step for step_dir in run.step_dirs()]
    if step not in found:
        have = ", ".join(map(str, found[-8:]))
        raise CheckpointError(f"run '{run.path}' has no checkpoint of step {step} → it has {have} → name one of them")
    return find_checkpoint(str(run.step_dir(step)))


def run_of(path: Path) -> RunDir | None:
    """The run directory that a checkpoint lies in; None where it lies elsewhere."""
    folder = path.absolute().parent
    return RunDir(folder.parent) if folder.name == "checkpoints" else None


def open_checkpoint(path: Path) -> SavedTensors:
    """A context manager. Raises CheckpointError."""
    return SavedTensors(path)


def state_of(saved: SavedTensors) -> CheckpointState:
    """Its state.json. Raises CheckpointError where it is not what was committed."""
    return read_state(saved.path, saved.commit)


def config_of(saved: SavedTensors, config_path: str | None) -> Config:
    """The run file that a checkpoint was trained with: the one given, else its run's config.toml.

    Raises ConfigError where there is none, CheckpointError where its schema is another one.
    """
    run = run_of(saved.path)
    if config_path is None:
        if run is None or not run.config.is_file():
            raise ConfigError(
                f"checkpoint '{saved.path}' lies in no run directory → the run's config.toml says how ids become rows "
                "→ name it with --config F"
            )
        config_path = str(run.config)
    config = load_config(config_path)
    read_state(saved.path, saved.commit, config.schema)
    return config
