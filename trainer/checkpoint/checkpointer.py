"""When to checkpoint, saving and loading over all ranks, and which checkpoints stay."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException

from pipelines.schema import Schema
from trainer.checkpoint import manifest
from trainer.checkpoint.planner import StrictLoadPlanner, save_planner
from trainer.checkpoint.state import CheckpointState, read_state
from trainer.checkpoint.storage import SafetensorsReader, SafetensorsWriter, open_safetensors, remove_checkpoint
from trainer.checkpoint.tensors import PIECE, flatten
from trainer.config_sections import Checkpoint
from trainer.errors import CheckpointError, UserError
from trainer.run_dir import RunDir

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Saved:
    """A committed checkpoint. bytes: of all its files, on rank 0. seconds: the save took. written: False where it was
    there already."""

    path: Path
    step: int
    bytes: int
    seconds: float
    written: bool = True


@dataclass(frozen=True)
class Piece:
    """A tensor that one rank saved for itself. name: as given to save. rank: of the run that saved."""

    rank: int
    name: str
    tensor: torch.Tensor


class Checkpointer:
    """process_group: of CPU tensors (gloo); None = the default one, or none at all in a single process. clock: seconds,
    monotonic."""

    def __init__(
        self,
        run_dir: RunDir,
        config: Checkpoint,
        process_group: dist.ProcessGroup | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.run_dir = run_dir
        self.config = config
        self.group = process_group
        self.clock = clock
        self.rank = dist.get_rank(process_group) if dist.is_initialized() else 0
        self.world_size = dist.get_world_size(process_group) if dist.is_initialized() else 1
        self.last_step: int | None = None
        self._last_time = clock()

    def due(self, step: int) -> bool:
        """Whether it is time to save after this step, by steps or by minutes. Ask rank 0 and let the ranks agree:
        clocks differ."""
        if step == self.last_step:
            return False
        return self.due_by_steps(step) or self.due_by_minutes()

    def due_by_steps(self, step: int) -> bool:
        """The same on every rank."""
        return self.config.every_steps > 0 and step % self.config.every_steps == 0

    def due_by_minutes(self) -> bool:
        """By this rank's clock."""
        return 0 < 60 * self.config.every_minutes <= self.clock() - self._last_time

    def seconds_since_save(self) -> float | None:
        """Since the last save or load of this process; None before the first."""
        return None if self.last_step is None else self.clock() - self._last_time

    def save(
        self, state: CheckpointState, tensors: Mapping[str, Any], pieces: Mapping[str, torch.Tensor] | None = None
    ) -> Saved:
        """Collective. `tensors`: nested dicts of tensors, the same names on every rank (sharded ones where a rank has a
        part). `pieces`: this rank's own tensors, of any shape.

        The checkpoint is complete when this returns on rank 0; then older ones beyond `keep` go. Where this step is the
        one last saved or loaded, nothing is written. Raises CheckpointError on every rank if one cannot write.
        """
        path = self.run_dir.step_dir(state.step)
        started = time.monotonic()
        written = state.step != self.last_step
        if written:
            flat = flatten(tensors) | flatten({PIECE: {f"{self.rank:05d}": dict(pieces or {})}})
            writer = SafetensorsWriter(path, self.rank, state.step, state.model_dump_json(indent=2))
            _raise_plainly(
                lambda: state_dict_saver.save(
                    flat, storage_writer=writer, planner=save_planner(), process_group=self.group
                )
            )
            self._mark(state.step)
            if self.rank == 0:
                self._prune(state.step)
        size = manifest.read_commit(path).total_bytes() if self.rank == 0 else 0
        return Saved(path, state.step, size, time.monotonic() - started, written)

    def latest(self) -> Path | None:
        """The newest complete checkpoint of the run."""
        return self.run_dir.latest()

    def load(self, path: Path, tensors: Mapping[str, Any], schema: Schema | None = None) -> CheckpointState:
        """Collective. Fills `tensors` (as given to save) in place, under any world size and sharding.

        Raises CheckpointError on every rank: incomplete, changed since it was written, of another schema or model; the
        tensors are then as they were, unless a file failed while it was read.
        """
        commit = manifest.read_commit(path)
        state = read_state(path, commit, schema)
        flat = flatten(tensors)
        reader = SafetensorsReader(path, self.rank, self.world_size)
        planner = StrictLoadPlanner(str(path))
        _raise_plainly(
            lambda: state_dict_loader.load(flat, storage_reader=reader, planner=planner, process_group=self.group)
        )
        if path.parent.resolve() == self.run_dir.checkpoints.resolve():
            self._mark(state.step)
        return state

    def read_pieces(self, path: Path, prefix: str = "") -> Iterator[Piece]:
        """Every rank's pieces whose name starts with `prefix`, by rank, then name. Not collective: take those that are
        yours now."""
        index = manifest.read_index(path, manifest.read_commit(path))
        for full_name, record in sorted(index.tensors.items()):
            kind, _, rest = full_name.partition("/")
            rank, _, name = rest.partition("/")
            if kind == PIECE and name.startswith(prefix):
                yield Piece(int(rank), name, _read_whole(path, record))

    def _mark(self, step: int) -> None:
        self.last_step, self._last_time = step, self.clock()

    def _prune(self, newest: int) -> None:
        """Keeps the newest `keep` complete ones; what an interrupted save left behind goes as well."""
        found = [step_dir for step_dir in self.run_dir.step_dirs() if step_dir.step <= newest]
        kept = [step_dir.path for step_dir in found if step_dir.complete][-self.config.keep :]
        for step_dir in found:
            if step_dir.path not in kept:
                log.info(
                    "removed: %s checkpoint %s", "older" if step_dir.complete else "incomplete", step_dir.path.name
                )
                remove_checkpoint(step_dir.path)


def _read_whole(path: Path, record: manifest.TensorRecord) -> torch.Tensor:
    if not record.chunks:
        return torch.empty(record.size, dtype=manifest.torch_dtype(record.dtype))
    (chunk,) = record.chunks
    with open_safetensors(path, chunk.file) as file:
        tensor: torch.Tensor = file.get_tensor(chunk.key)
        return tensor


def _raise_plainly(collective: Callable[[], Any]) -> None:
    """DCP gathers every rank's exception into one; a user's mistakes and a full disk become lines again, the same on
    every rank."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            collective()
    except CheckpointException as error:
        causes = [cause for cause, _ in error.failures.values()]
        problems = [problem for cause in causes if isinstance(cause, UserError) for problem in cause.problems]
        problems += [
            f"checkpoint: {cause.filename or 'a file'}: {cause.strerror} → its files must be writable, with room on "
            "the disk → make room or choose "
            "another --run-dir"
            for cause in causes
            if isinstance(cause, OSError)
        ]
        if not problems:
            raise RuntimeError(str(error)) from error
        raise CheckpointError(list(dict.fromkeys(problems))) from error
