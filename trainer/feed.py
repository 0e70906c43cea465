"""From host batches to RequestBatches, one step ahead of their training: what ranks must agree on is agreed here.

The agreement about a batch is sent off one call before the batch is wanted, and travels while a step is trained: nobody
waits for the slowest rank here (docs/benchmarks/scaling.md).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from embeddings.idmap import IdMapper
from pipelines.batch import QUARANTINED, Batch, Int64, Position
from pipelines.errors import DataError
from pipelines.stream import BatchStream, Executor, batches
from pipelines.windows import Pass
from trainer.bad_share import BadShare
from trainer.device_batch import RequestBatch, StepInfo, wrap
from trainer.field_blocks import FieldBlocks
from trainer.runtime import Runtime
from trainer.step_split import StepClock
from trainer.table_health import TableHealth


class Feed(Iterator[RequestBatch]):
    """Called by the training pipeline once a step, on every rank alike.

    batches: this rank's, None = there are none left. step: of the last optimizer step done; the next batch is for the
    one after it. train: whether the id maps learn; if not, ids are mapped as they were after `step`. wants: (stop,
    save): what this rank would like; any rank's wish becomes all ranks' at the same step.
    bad_share: fails the run where too many rows are bad, on all ranks. health: of the tables, told what ids were mapped
    to in training. clock: of the step that it is read in. blocks: of static columns.
    wait_seconds: time spent waiting for the reader since it was last reset. read_retries: of this rank's batches.
    stopping, saving: what was agreed, one call after it was wished for; `saved` ends the latter.
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
        blocks: FieldBlocks | None = None,
    ) -> None:
        self._batches, self._mapper, self._tasks = batches, mapper, tasks
        self._runtime, self._train, self._wants = runtime, train, wants
        self._step, self._bad_share, self._health = step, bad_share, health
        self._clock = clock or StepClock(on=False)
        self._blocks = blocks
        self.wait_seconds = 0.0
        self.read_retries = 0
        self.stopping = False
        self.saving = False
        self._ahead: deque[RequestBatch] = deque()
        self._asked: _Asked | None = None  # about the next batch
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
        wrapped = wrap(
            batch, self._info, rows, self._mapper.groups, self._tasks, self._runtime.world_size, self._blocks
        )
        # From page-locked memory, which torch keeps and uses again, the copy to a GPU goes on behind the host's back.
        return wrapped.pin_memory() if self._runtime.device.type == "cuda" else wrapped

    def look_ahead(self) -> None:
        """Maps the next batch already, if there is one: what it evicts is known before it is trained. Collective."""
        batch = next(self, None)
        if batch is not None:
            self._ahead.append(batch)

    @property
    def waiting(self) -> tuple[int, int]:
        """(batches, windows behind them) that are read and wait for their step."""
        batches, windows = self._batches.waiting if self._batches is not None else (0, 0)
        asked = self._asked is not None and self._asked.batch is not None
        return batches + len(self._ahead) + asked, windows

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

    def saved(self) -> None:
        """Every rank has saved: wishes that were on their way are fulfilled."""
        self.saving = False
        if self._asked is not None:
            self._asked.save_is_done = True

    def _read(self) -> Batch | None:
        """The next batch, with ranks in agreement about it; an error of one rank's reader is an error on all, not a
        hang."""
        asked = self._asked or self._ask()
        self._asked = None
        totals, data_through = asked.answer()
        failed, ended, stopping, saving = totals[-4:]
        if asked.error is not None:
            raise asked.error
        if failed:
            raise DataError("another rank's reader failed → its own line says why → mend that and resume")
        if ended:
            assert ended == self._runtime.world_size, "plans give every rank the same number of batches"
            if self._bad_share is not None:
                self._bad_share.end()
            return None
        batch = asked.batch
        assert batch is not None
        self.read_retries += batch.retries
        self.stopping |= stopping > 0
        self.saving |= saving > 0 and not asked.save_is_done
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
        self._asked = self._ask()
        return batch

    def _ask(self) -> _Asked:
        """Reads one batch further, and sends off what ranks are to agree on about it."""
        started = time.perf_counter()
        error: Exception | None = None
        batch: Batch | None = None
        try:
            with self._clock.part("data_wait"):
                batch = next(self._batches, None) if self._batches is not None else None
        except Exception as caught:
            error = caught
        self.wait_seconds += time.perf_counter() - started
        asked = _Asked(batch, error, *self._own(batch, error))
        if self._runtime.world_size > 1:
            asked.send(self._runtime.world_size, self._runtime.control)
        return asked

    def _own(self, batch: Batch | None, error: Exception | None) -> tuple[npt.NDArray[np.float64], int]:
        """This rank's [Σ w per task, labelled positions per task, rows, quarantined, failed, ended, stop, save]; newest
        event time."""
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
        return sums, int(newest)


@dataclass
class _Asked:
    """What ranks are agreeing on about a batch, which is read already. sums, newest: this rank's part.
    save_is_done: the checkpoint that some rank may have wished for is written."""

    batch: Batch | None
    error: Exception | None
    sums: npt.NDArray[np.float64]
    newest: int
    save_is_done: bool = False
    _parts: list[torch.Tensor] = field(default_factory=list)
    _work: dist.Work | None = None

    def send(self, world_size: int, group: dist.ProcessGroup) -> None:
        """To all ranks. Collective."""
        shared = torch.from_numpy(np.append(self.sums, self.newest / 1e6))
        self._parts = [torch.empty_like(shared) for _ in range(world_size)]
        self._work = dist.all_gather(self._parts, shared, group=group, async_op=True)

    def answer(self) -> tuple[list[float], int]:
        """([Σ w per task, labelled positions per task, rows, quarantined, failed, ended, stop, save], summed over
        ranks; newest event time)."""
        if self._work is None:
            return self.sums.tolist(), self.newest
        self._work.wait()
        gathered = torch.stack(self._parts)
        # Summed in rank order on every rank: all_reduce would leave the order to the backend.
        return gathered[:, :-1].sum(0).tolist(), round(float(gathered[:, -1].max()) * 1e6)


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
    blocks: FieldBlocks | None = None,
) -> Feed:
    """The feed of what comes after the global batch at `done` (None = of the whole pass). Raises DataError when data
    and position differ."""
    start = None if done is None else pass_.position_after(done)
    over = done is not None and start is None
    stream = None if over else batches(pass_, runtime.world_size, runtime.rank, start, executor)
    folder = pass_.reading.quarantine
    bad_share = BadShare(pass_.data.max_bad_share, folder) if folder else None
    return Feed(
        stream, mapper, tuple(pass_.schema.tasks), runtime, step, train, wants, bad_share, health, clock, blocks
    )
