"""When to checkpoint; saving beside the training, and loading, over all ranks."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import torch
import torch.distributed as dist

from embeddings.held import Held
from embeddings.touched import TouchedRows
from pipelines.schema import Schema
from trainer.checkpoint import manifest
from trainer.checkpoint.agreement import agree, gather
from trainer.checkpoint.blocks import id_maps, small_blocks, table_blocks
from trainer.checkpoint.folder import COMMIT, Folder, Location, name_of, spoken
from trainer.checkpoint.inflight import InFlight, Saved
from trainer.checkpoint.manifest import Base, Commit, DamagedError
from trainer.checkpoint.reading import SavedTensors
from trainer.checkpoint.retention import prune
from trainer.checkpoint.saving import records_of, write_checkpoint
from trainer.checkpoint.snapshot import Snapshot, small_tensors
from trainer.checkpoint.state import CheckpointState, read_state
from trainer.config_sections import Checkpoint
from trainer.errors import CheckpointError
from trainer.run_dir import RunDir

log = logging.getLogger(__name__)

CLOSING_SECONDS = 60.0
Tensors = Callable[[], Mapping[str, Held]]

__all__ = ["Checkpointer", "Saved"]


class Checkpointer:
    """process_group: of CPU tensors (gloo); None = the default one, or none at all in a single process. background: one
    of its own, for writing beside the training. touched: of the model's tables; without it every checkpoint is full and
    training waits. clock: seconds, monotonic.
    """

    def __init__(
        self,
        run_dir: RunDir,
        config: Checkpoint,
        process_group: dist.ProcessGroup | None = None,
        clock: Callable[[], float] = time.monotonic,
        touched: TouchedRows | None = None,
        background: dist.ProcessGroup | None = None,
    ) -> None:
        self.run_dir, self.config, self.clock = run_dir, config, clock
        self.group, self._touched = process_group, touched
        self.rank = dist.get_rank(process_group) if dist.is_initialized() else 0
        self.world_size = dist.get_world_size(process_group) if dist.is_initialized() else 1
        alone = self.world_size == 1
        self.is_async = config.mode == "async" and touched is not None and (alone or background is not None)
        self._writers = background if self.is_async else process_group
        self.last_step: int | None = None
        self._last_time = clock()
        self._in_flight: InFlight | None = None
        self._done: list[Saved] = []
        self._base: Location | None = None  # what the next difference is to
        self._since_full = 0
        self._maps: dict[str, torch.Tensor] = {}  # id maps of the base
        self._checked: Location | None = None

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

    @property
    def failed(self) -> bool:
        """Whether this rank knows that the one in flight came to nothing: `begin` and `wait` will say so, on every
        rank."""
        return self._in_flight is not None and self._in_flight.failed

    def seconds_since_save(self) -> float | None:
        """Since the last save or load of this process; None before the first."""
        return None if self.last_step is None else self.clock() - self._last_time

    def save(self, state: CheckpointState, tensors: Tensors, scores: Mapping[str, float] | None = None) -> Saved:
        """Collective. `begin` and `wait`: complete when this returns."""
        path, known = self.run_dir.step_dir(state.step), state.step == self.last_step
        self.begin(state, tensors, scores)
        saved = self.wait()
        if not known:
            return next(found for found in reversed(saved) if found.step == state.step)
        size = manifest.read_commit(path).total_bytes() if self.rank == 0 else 0
        return Saved(path, state.step, state.examples, size, 0.0, written=False)

    def begin(self, state: CheckpointState, tensors: Tensors, scores: Mapping[str, float] | None = None) -> float:
        """Collective, at a step boundary: from here on the checkpoint of this step is being written, or is written
        when this returns (unless `is_async`). Where this step is the one last saved or loaded, nothing is. Returns the
        seconds that training stood still.

        tensors: the same names on every rank; asked for only when something is written. scores: of rank 0, what an
        evaluation of this very step said. Waits for the checkpoint before it. Raises CheckpointError on every rank if
        that one, or this one, could not be written.
        """
        started = time.perf_counter()
        waited = self._settle()
        if state.step == self.last_step:
            return time.perf_counter() - started
        writing = self._prepare(state, tensors(), dict(scores or {}))
        self._in_flight = writing
        self.last_step, self._last_time = state.step, self.clock()
        frozen = time.perf_counter() - started
        writing.stall_seconds = frozen - waited
        writing.start()
        return frozen if self.is_async else frozen + self._settle()

    def poll(self) -> list[Saved]:
        """What has been committed since the last call, on this rank; waits for nothing and raises nothing."""
        if self._in_flight is not None and self._in_flight.ended and not self._in_flight.failed:
            self._settle()
        done, self._done = self._done, []
        return done

    def wait(self) -> list[Saved]:
        """Collective: nothing is in flight when this returns. What `poll` returns. Raises CheckpointError on every rank
        if it could not be written."""
        self._settle("the run ends when it is there")
        return self.poll()

    def close(self, wait: bool = True) -> None:
        """Not collective: after an error elsewhere, gives what is in flight some time to end, unless the ranks have
        lost each other: it takes all of them. Raises nothing."""
        if wait and self._in_flight is not None and not self._in_flight.ended:
            self._in_flight.join(CLOSING_SECONDS)

    def latest(self) -> Location | None:
        """The newest complete checkpoint of the run."""
        return self.run_dir.latest()

    def newest_good(self, run_dir: RunDir) -> Location | None:
        """Collective: the newest complete checkpoint of a run whose files, and those of all that it is built on, are
        what they were; None where there is no complete one. Those passed over are named in a line each.

        Raises CheckpointError where none is good, and for one of a newer format.
        """
        passed: list[str] = []
        for found in reversed(gather(run_dir.step_dirs(), self.group)[0]):
            if not found.complete:
                continue
            try:
                with agree(self.group), SavedTensors(found.path) as saved:
                    saved.check_files(self.rank, self.world_size)
            except DamagedError as error:
                passed += error.problems
                if self.rank == 0:
                    for line in error.problems:
                        log.warning("passed over: %s", line)
                continue
            if passed and self.rank == 0:
                log.warning("the newest good checkpoint is %s", spoken(found.path))
            self._checked = found.path
            return found.path
        if passed:
            raise CheckpointError(passed)
        return None

    @contextmanager
    def opened(self, path: Location) -> Iterator[SavedTensors]:
        """Collective at its beginning: a checkpoint whose files are what was committed. Raises CheckpointError on every
        rank."""
        with SavedTensors(path) as saved:
            if path != self._checked:
                with agree(self.group):
                    saved.check_files(self.rank, self.world_size)
            yield saved

    def load(self, path: Location, tensors: Mapping[str, Held], schema: Schema | None = None) -> CheckpointState:
        """Collective. Fills `tensors` (as given to save) in place, under any world size and sharding.

        Raises CheckpointError on every rank: incomplete, changed since it was written, of another schema or model; the
        tensors are then as they were, unless a file failed while it was read.
        """
        state = read_state(path, manifest.read_commit(path), schema)
        with self.opened(path) as saved:
            with agree(self.group):
                if problems := saved.problems(tensors):
                    raise CheckpointError(problems)
            with agree(self.group):
                for name, held in tensors.items():
                    saved.read_held(name, held)
            links = len(saved.chain())
        if _same(path, self.run_dir.step_dir(state.step)):
            self.last_step, self._last_time = state.step, self.clock()
            copies = {name: value.clone() for name, value in id_maps(tensors).items()}
            self._build_on(path, links - 1, copies)
            if self._touched is not None:
                self._touched.end_generation()
        return state

    def _prepare(self, state: CheckpointState, tensors: Mapping[str, Held], scores: dict[str, float]) -> InFlight:
        """Freezes the tables and copies the rest; all that training waits for."""
        path = self.run_dir.step_dir(state.step)
        base = self._base if self._since_full + 1 < self.config.full_every else None
        limit = self.config.aside_mb << 20
        snapshot = Snapshot(tensors, self._touched, changed_only=base is not None, limit_bytes=limit)
        small = small_tensors(tensors)
        previous = None if base is None else self._maps
        records = records_of(tensors)
        commit = Commit(
            format_version=manifest.FORMAT_VERSION,
            step=state.step,
            files={},
            segment=state.position.name if state.position else "",
            scores=scores,
        )

        def write() -> int:
            named = commit
            with agree(self._writers):
                if base is not None and self.rank == 0:
                    named = commit.model_copy(update={"base": _named(base)})
            size = write_checkpoint(
                Folder(path),
                lambda: chain(table_blocks(snapshot), small_blocks(small, self.rank, self.world_size, previous)),
                records,
                named,
                state.model_dump_json(indent=2),
                self._writers,
            )
            with agree(self._writers):
                if self.rank == 0:
                    prune(self.run_dir.checkpoints, state.step, self.config, next(iter(state.data_schema.tasks), ""))
            return size

        self._build_on(path, 0 if base is None else self._since_full + 1, id_maps(small))
        return InFlight(path, state, "full" if base is None else "delta", snapshot, write)

    def _build_on(self, path: Location, since_full: int, maps: dict[str, torch.Tensor]) -> None:
        """The next difference is to this one, once it is committed."""
        if self._touched is None or self.config.full_every == 1:
            return
        self._base, self._since_full, self._maps = path, since_full, maps

    def _settle(self, what_waits: str = "training waits for it") -> float:
        """Waits for the one in flight; returns the seconds it took. Raises what its writing raised."""
        writing, self._in_flight = self._in_flight, None
        if writing is None:
            return 0.0
        if not writing.ended and self.is_async and self.rank == 0:
            log.info("the checkpoint of step %d is still being written: %s", writing.step, what_waits)
        seconds = writing.join()
        writing.stall_seconds += seconds
        self._done.append(writing.result())
        return seconds


def _named(base: Location) -> Base:
    """Raises CheckpointError where it was removed behind our back."""
    try:
        return Base(name=name_of(base), sha256=hashlib.sha256(Folder(base).read(COMMIT)).hexdigest())
    except OSError as error:
        raise CheckpointError(
            f"checkpoint {spoken(base)} cannot be read ({error.strerror or type(error).__name__}) → the next "
            "difference is to it → resume: the run goes on from what is there"
        ) from error


def _same(one: Location, other: Location) -> bool:
    if isinstance(one, Path) and isinstance(other, Path):
        return one.resolve() == other.resolve()
    return str(one) == str(other)
