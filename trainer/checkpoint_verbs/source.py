"""Which checkpoint an argument means, where its run is, and opening it: the one place of these verbs that does.

An argument is a checkpoint, a run directory (whose checkpoints may lie elsewhere), or a folder of checkpoints; paths or
URIs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from trainer.checkpoint.folder import COMMIT, Folder, Location, StepDir, below, located, step_dirs
from trainer.checkpoint.manifest import METADATA
from trainer.checkpoint.reading import SavedTensors
from trainer.checkpoint.state import CheckpointState, read_state
from trainer.config import Config, load_config
from trainer.errors import CheckpointError, ConfigError
from trainer.run_dir import RunDir


@dataclass(frozen=True)
class Place:
    """Where a run's checkpoints lie. name: as the user said it. run: its run directory, None where only the checkpoints
    are known. found: oldest step first, incomplete ones among them."""

    name: str
    location: Location
    run: RunDir | None
    found: list[StepDir]

    def newest(self) -> Found:
        """The newest complete one. Raises CheckpointError."""
        complete = [step_dir for step_dir in self.found if step_dir.complete]
        if complete:
            return Found(complete[-1].path, self.run)
        incomplete = ", ".join(step_dir.name for step_dir in self.found)
        named = f" (without {COMMIT}: {incomplete})" if incomplete else ""
        raise CheckpointError(
            f"'{self.name}' has no complete checkpoint{named} → one is written by checkpoint.every_steps and "
            "every_minutes, and at the end → let it train on, or name another"
        )

    def of_step(self, step: int) -> Found:
        """Raises CheckpointError where there is none of that step, or an incomplete one."""
        for step_dir in self.found:
            if step_dir.step == step:
                if not step_dir.complete:
                    raise _incomplete(str(step_dir.path))
                return Found(step_dir.path, self.run)
        have = ", ".join(str(step_dir.step) for step_dir in self.found[-8:]) or "none"
        raise CheckpointError(
            f"'{self.name}' has no checkpoint of step {step} → its steps are {have} → name one of them"
        )


@dataclass(frozen=True)
class Found:
    """A complete checkpoint, and its run directory where that is known."""

    location: Location
    run: RunDir | None


def find_checkpoint(argument: str) -> Found:
    """A checkpoint itself, or the newest complete one of the place. Raises CheckpointError where it is neither."""
    with _looking_at(argument):
        location = _located(argument)
        folder = Folder(location)
        if folder.size(COMMIT) is not None:
            return Found(location, _run_of(location))
        if folder.size(METADATA) is not None or folder.name.startswith("step_"):
            raise _incomplete(argument)
    return find_place(argument).newest()


def find_place(argument: str) -> Place:
    """A run directory or a folder of checkpoints. Raises CheckpointError where it is neither."""
    with _looking_at(argument):
        location = _located(argument)
        if isinstance(location, Path) and ((location / "config.toml").is_file() or (location / "checkpoints").is_dir()):
            run = RunDir(location)
            return Place(argument, run.checkpoints, run, step_dirs(run.checkpoints))
        for inner in (location, below(location, "checkpoints")):
            if found := step_dirs(inner):
                return Place(argument, inner, None, found)
    raise CheckpointError(
        f"'{argument}' is neither a checkpoint nor a run directory → a checkpoint is a folder with a {COMMIT} file, a "
        "run directory has a config.toml and checkpoints/ → check the path"
    )


@contextmanager
def open_checkpoint(found: Found) -> Iterator[SavedTensors]:
    """Raises CheckpointError where it is not complete, or its base is not."""
    with _looking_at(str(found.location)):
        opened = SavedTensors(found.location)
    with opened as saved:
        yield saved


def check_files(saved: SavedTensors) -> None:
    """Every file of it, and of what it is built on, is what was committed. Raises CheckpointError, a line a file."""
    with _looking_at(str(saved.path)):
        saved.check_files()


def state_of(saved: SavedTensors) -> CheckpointState:
    """Its state.json. Raises CheckpointError where it is not what was committed."""
    return read_state(saved.path, saved.commit)


def config_of(saved: SavedTensors, run: RunDir | None, config_path: str | None) -> Config:
    """The run file that a checkpoint was trained with: the one given, else its run's config.toml.

    Raises ConfigError where there is none, CheckpointError where its schema is another one.
    """
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


def _located(argument: str) -> Location:
    """Paths as they are written, so that messages name what the user named."""
    return located(argument) if "://" in argument else Path(argument)


def _run_of(location: Location) -> RunDir | None:
    """The run directory that a checkpoint lies in."""
    if not isinstance(location, Path):
        return None
    folder = location.absolute().parent
    return RunDir(folder.parent) if folder.name == "checkpoints" else None


def _incomplete(name: str) -> CheckpointError:
    return CheckpointError(
        f"'{name}' has no {COMMIT} → a checkpoint is complete only with it, the writing of this one was interrupted or "
        "goes on → use a complete one, see `tokenformer checkpoint list`"
    )


@contextmanager
def _looking_at(name: str) -> Iterator[None]:
    """What a store answers, or a path that is no folder, in one line."""
    try:
        yield
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
            raise  # of a disk: the command says it
        raise CheckpointError(
            f"'{name}' cannot be read: {str(error).splitlines()[0]} → a path, or a URI of a store that can be reached "
            "→ check it, and the store's credentials"
        ) from error
