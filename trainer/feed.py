"""From host batches to RequestBatches, one step ahead of their training: what ranks must agree on is agreed here."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.distributed as dist

from embeddings.idmap import IdMapper
from pipelines.batch import QUARANTINED, Batch, Int64, Position
from pipelines.errors import DataError
from pipelines.stream import BatchStream, Executor, batches
from pipelines.windows import Pass
from trainer.bad_share import BadShare
from trainer.device_batch import RequestBatch, StepInfo, wrap
from trainer.runtime import Runtime
from trainer.step_split import StepClock
from trainer.table_health import TableHealth


class Feed(Iterator[RequestBatch]):
    """Called by the training pipeline once a step, on every rank alike.

    batches: this rank's, None = there are none left. step: of the last optimizer step done; the next batch is for the
    one after it. train: whether the id maps learn; if not, ids are mapped as they were after `step`. wants: (stop,
    save): what this rank would like; any rank's wish becomes all ranks' at the same step.
    bad_share: fails the run where too many rows are bad, on all ranks. health: of the tables, told what ids were mapped
    to in training. clock: of the step that it is read in.
    wait_seconds: time spent waiting for the reader since it was last reset. read_retries: of this rank's batches.
    stopping, saving: what was agreed.
    """

    def __init__(
        self,
        batches: BatchStream | None,
        mapper: IdMapper,
        tasks: tuple[str, ...],
        runtime: Runtime,
        step: int = 0,
        train: bool = True,
        wants: Callable[[], tuple[bool, bool]] = lambda: (False, False),
        bad_share: BadShare | None = None,
        health: TableHealth | None = None,
        clock: StepClock | None = None,
    ) -> None:
        self._batches, self._mapper, self._tasks = batches, mapper, tasks
        self._runtime, self._train, self._wants = runtime, train, wants
        self._step, self._bad_share, self._health = step, bad_share, health
        self._clock = clock or StepClock(on=False)
        self.wait_seconds = 0.0
        self.read_retries = 0
        self.stopping = False
        self.saving = False
        self._ahead: deque[RequestBatch] = deque()
        self._is_over = False
        if train:
            mapper.mark(step)
        if health is not None:
            health.start()

    def __next__(self) -> RequestBatch:
        if self._ahead:
            return self._ahead.popleft()
        with self._clock.part("id_exchange"):
            batch = None if self._is_over else self._read()
            if batch is None:
                self._is_over = True
                raise StopIteration
            rows = self._rows_of(batch)
        return wrap(batch, self._info, rows, self._mapper.groups, self._tasks, self._runtime.world_size)

    def look_ahead(self) -> None:
        """Maps the next batch already, if there is one: what it evicts is known before it is trained. Collective."""
        batch = next(self, None)
        if batch is not None:
            self._ahead.append(batch)

    def _rows_of(self, batch: Batch) -> dict[str, Int64]:
        """Its ids mapped, which the maps learn from in training."""
        if not self._train:
            return self._mapper.rows_of(batch.tables, train=False, upto_step=self._step)
        self._step += 1
        rows = self._mapper.rows_of(batch.tables, train=True, now=self._info.data_through)
        self._mapper.mark(self._step)
        if self._health is not None:
            self._health.mapped(self._step, batch.tables, rows)
        return rows

    def close(self) -> None:
        """Ends the reading ahead."""
        if self._batches is not None:
            self._batches.close()

    def _read(self) -> Batch | None:
        """The next batch, with ranks in agreement about it; an error of one rank's reader is an error on all, not a
        hang."""
        started = time.perf_counter()
        error: Exception | None = None
        batch: Batch | None = None
        try:
            with self._clock.part("data_wait"):
                batch = next(self._batches, None) if self._batches is not None else None
        except Exception as caught:
            error = caught
        self.wait_seconds += time.perf_counter() - started
        totals, data_through = self._agree(batch, error)
        failed, ended, stopping, saving = totals[-4:]
        if error is not None:
            raise error
        if failed:
            raise DataError("another rank's reader failed → its own line says why → mend that and resume")
        if ended:
            assert ended == self._runtime.world_size, "plans give every rank the same number of batches"
            if self._bad_share is not None:
                self._bad_share.end()
            return None
        assert batch is not None
        self.read_retries += batch.retries
        self.stopping |= stopping > 0
        self.saving |= saving > 0
        k = len(self._tasks)
        self._info = StepInfo(
            step=self._step + 1,
            position=batch.position,
            rows=int(totals[2 * k]),
            examples=tuple(int(n) for n in totals[k : 2 * k]),
            weight_sums=tuple(totals[:k]),
            data_through=data_through,
            quarantined=int(totals[2 * k + 1]),
        )
        if self._bad_share is not None:
            self._bad_share.add(self._info.rows, self._info.quarantined, batch.position.name)
        return batch

    def _agree(self, batch: Batch | None, error: Exception | None) -> tuple[list[float], int]:
        """[Σ w per task, labelled positions per task, rows, quarantined, failed, ended, stop, save], summed over ranks;
        newest event time."""
        sums = np.zeros(2 * len(self._tasks) + 6)
        newest = np.iinfo(np.int64).min
        if batch is not None:
            for k, task in enumerate(self._tasks):
                weights = batch.weights[task]
                sums[k] = weights.sum(dtype=np.float64)
                sums[len(self._tasks) + k] = np.count_nonzero(weights)
            if not batch.filler:
                sums[-6:-4] = batch.rows, np.count_nonzero(batch.status == QUARANTINED)
            newest = newest_time(batch)
        sums[-4:] = error is not None, batch is None and error is None, *self._wants()
        if self._runtime.world_size > 1:
            shared = torch.from_numpy(np.append(sums, newest / 1e6))
            parts = [torch.empty_like(shared) for _ in range(self._runtime.world_size)]
            dist.all_gather(parts, shared, group=self._runtime.control)
            gathered = torch.stack(parts)
            # Summed in rank order on every rank: all_reduce would leave the order to the backend.
            sums, newest = gathered[:, :-1].sum(0).numpy(), round(float(gathered[:, -1].max()) * 1e6)
        return sums.tolist(), int(newest)


def newest_time(batch: Batch) -> int:
    """Microseconds of the newest request, or of the newest history event where requests have no time of their own."""
    newest = [times.max() for times in (*batch.times.values(), batch.request_time) if len(times)]
    return int(max(newest)) if newest else 0


def open_feed(
    pass_: Pass,
    done: Position | None,
    executor: Executor,
    mapper: IdMapper,
    runtime: Runtime,
    step: int = 0,
    train: bool = True,
    wants: Callable[[], tuple[bool, bool]] = lambda: (False, False),
    health: TableHealth | None = None,
    clock: StepClock | None = None,
) -> Feed:
    """The feed of what comes after the global batch at `done` (None = of the whole pass). Raises DataError when data
    and position differ."""
    start = None if done is None else pass_.position_after(done)
    over = done is not None and start is None
    stream = None if over else batches(pass_, runtime.world_size, runtime.rank, start, executor)
    folder = pass_.reading.quarantine
    bad_share = BadShare(pass_.data.max_bad_share, folder) if folder else None
    return Feed(stream, mapper, tuple(pass_.schema.tasks), runtime, step, train, wants, bad_share, health, clock)
