"""When to checkpoint, saving and loading over all ranks, and which checkpoints stay."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

from embeddings.held import Held
from pipelines.schema import Schema
from trainer.checkpoint import manifest
from trainer.checkpoint.agreement import agree
from trainer.checkpoint.reading import SavedTensors
from trainer.checkpoint.saving import remove_checkpoint, save_tensors
from trainer.checkpoint.state import CheckpointState, read_state
from trainer.config_sections import Checkpoint
from trainer.errors import CheckpointError
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

    def save(self, state: CheckpointState, tensors: Callable[[], Mapping[str, Held]]) -> Saved:
        """Collective. `tensors`: the same names on every rank; asked for only when something is written.

        The checkpoint is complete when this returns on rank 0; then older ones beyond `keep` go. Where this step is the
        one last saved or loaded, nothing is written. Raises CheckpointError on every rank if one cannot write.
        """
        path = self.run_dir.step_dir(state.step)
        started = time.monotonic()
        written = state.step != self.last_step
        if written:
            save_tensors(path, tensors(), state.step, state.model_dump_json(indent=2), self.group)
            self._mark(state.step)
            if self.rank == 0:
                self._prune(state.step)
        size = manifest.read_commit(path).total_bytes() if self.rank == 0 else 0
        return Saved(path, state.step, size, time.monotonic() - started, written)

    def latest(self) -> Path | None:
        """The newest complete checkpoint of the run."""
        return self.run_dir.latest()

    def load(self, path: Path, tensors: Mapping[str, Held], schema: Schema | None = None) -> CheckpointState:
        """Collective. Fills `tensors` (as given to save) in place, under any world size and sharding.

        Raises CheckpointError on every rank: incomplete, changed since it was written, of another schema or model; the
        tensors are then as they were, unless a file failed while it was read.
        """
        state = read_state(path, manifest.read_commit(path), schema)
        with SavedTensors(path) as saved:
            with agree(self.group):
                saved.check_files(self.rank, self.world_size)
            with agree(self.group):
                if problems := saved.problems(tensors):
                    raise CheckpointError(problems)
            with agree(self.group):
                for name, held in tensors.items():
                    saved.read_held(name, held)
        if path.parent.resolve() == self.run_dir.checkpoints.resolve():
            self._mark(state.step)
        return state

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
