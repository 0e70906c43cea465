"""Streams that do what no stream may: they drop, repeat or mix up batches, or mark rows as bad."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from pipelines.batch import QUARANTINED, Batch, Position
from pipelines.segments import find_segments
from pipelines.stream import ThreadExecutor, batches
from pipelines.windows import Pass
from tests.trainer.runs import Run, train_runs
from trainer import feed
from trainer.consumed import open_recorder
from trainer.run_dir import RunDir

Wrapper = Callable[[list[Batch]], list[Batch]]


def dropped(whole: list[Batch]) -> list[Batch]:
    """The second batch is lost."""
    return whole[:1] + whole[2:]


def window_dropped(whole: list[Batch]) -> list[Batch]:
    """All batches of the window that comes second are lost."""
    windows = [(b.position.epoch, b.position.name, b.position.batch // 3) for b in whole]
    second = next(window for window in windows if window != windows[0])
    return [batch for batch, window in zip(whole, windows, strict=True) if window != second]


def repeated(whole: list[Batch]) -> list[Batch]:
    """The second batch comes twice."""
    return whole[:2] + whole[1:]


def neighbour_in_its_place(whole: list[Batch]) -> list[Batch]:
    """In the second batch's place come the rows of the third, and say so."""
    return [whole[0], replace(whole[2], position=whole[1].position), *whole[2:]]


def neighbour_unsaid(whole: list[Batch]) -> list[Batch]:
    """The second batch holds the third one's rows under its own rows' names."""
    return [
        whole[0],
        replace(whole[2], position=whole[1].position, file=whole[1].file, row=whole[1].row),
        *whole[2:],
    ]


def mixed_up(whole: list[Batch]) -> list[Batch]:
    """The rows of the second batch have each other's contents."""
    return [whole[0], replace(whole[1], file=np.roll(whole[1].file, 1), row=np.roll(whole[1].row, 1)), *whole[2:]]


def one_history_id_is_another(whole: list[Batch]) -> list[Batch]:
    """One event's item of the second batch is that of another event."""
    batch = whole[1]
    inverse = batch.fields["v_item"].inverse.copy()
    inverse[0] = (inverse[0] + 1) % len(batch.tables["item"].ids)
    fields = batch.fields | {"v_item": replace(batch.fields["v_item"], inverse=inverse)}
    return [whole[0], replace(batch, fields=fields), *whole[2:]]


def quarantined(whole: list[Batch]) -> list[Batch]:
    """Two rows of the second batch are bad: they keep their place, and nothing is known of their ids."""
    batch = whole[1]
    status = batch.status.copy()
    status[:2] = QUARANTINED
    inverse = batch.fields["user_id"].inverse.copy()
    inverse[:2] = 0
    fields = batch.fields | {"user_id": replace(batch.fields["user_id"], inverse=inverse)}
    weights = {task: np.zeros_like(weight) for task, weight in batch.weights.items()}
    return [whole[0], replace(batch, status=status, fields=fields, weights=weights), *whole[2:]]


def record(wrapper: Wrapper, run: Run) -> Position:
    """The record of a run over such a stream, as the loop has it written; nothing is trained. Returns the position."""
    run_dir = RunDir(run.run_dir)
    run_dir.prepare("never")
    segments = find_segments(run.config.data).train
    pass_ = Pass(run.config.schema, run.config.data, segments, run.config.train.seed)
    alone: Any = SimpleNamespace(rank=0, world_size=1, is_first=True)
    recorder = open_recorder(run_dir, run.config, segments, 0, alone)
    whole = wrapper(list(batches(pass_, 1, 0, None, ThreadExecutor())))
    for step, batch in enumerate(whole, 1):
        recorder.trained(step, batch)
    recorder.ended(len(whole))
    recorder.flush()
    recorder.close()
    return whole[-1].position


class _Wrapped(Iterator[Batch]):
    def __init__(self, stream: Any, wrapper: Wrapper) -> None:
        self._batches = iter(wrapper(list(stream)))

    def __next__(self) -> Batch:
        return next(self._batches)

    @property
    def waiting(self) -> tuple[int, int]:
        return 0, 0

    def close(self) -> None:
        """All was read at the beginning."""


def train_wrapped(rank: int, world_size: int, runs: list[tuple[Wrapper, Run]]) -> None:
    """Runs, each over a stream of its own kind."""
    honest = feed.batches
    for wrapper, run in runs:
        feed.batches = lambda *args, wrapper=wrapper: _Wrapped(honest(*args), wrapper)  # type: ignore[assignment, misc]
        train_runs(rank, world_size, [run])
        feed.batches = honest
