"""A task's labels in a segment, batch after batch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.inspect import is_list
from pipelines.profile_column import Float64, floats_of
from pipelines.profile_format import TaskProfile
from pipelines.schema import Task


class TaskSketch:
    """Counts the supervised positions in the task's space with weight above 0, and their labels."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.positions = self.labelled = self.positive = 0

    def add(self, batch: pa.RecordBatch) -> None:
        """Rows whose lists of label, space and weight have not one length are left out: they are bad rows, which the
        reader reports."""
        names = [name for name in (self.task.label, self.task.space, self.task.weight) if name]
        if any(name not in batch.schema.names for name in names):
            return
        columns = {name: batch.column(name) for name in names}
        whole = _equal_lengths(list(columns.values()))
        values = {name: _numbers(column.filter(pa.array(whole))) for name, column in columns.items()}
        label = values[self.task.label]
        counts = np.ones(len(label), bool)
        if self.task.space:
            counts &= values[self.task.space] == 1
        if self.task.weight:
            counts &= values[self.task.weight] > 0
        self.positions += int(counts.sum())
        self.labelled += int((counts & ~np.isnan(label)).sum())
        self.positive += int((counts & (label == 1)).sum())

    def profile(self) -> TaskProfile:
        """What was added."""
        return TaskProfile(positions=self.positions, labelled=self.labelled, positive=self.positive)


def _equal_lengths(columns: list[pa.Array]) -> npt.NDArray[np.bool_]:
    lengths = [
        pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
        if is_list(column.type)
        else np.zeros(len(column), np.int64)
        for column in columns
    ]
    equal: npt.NDArray[np.bool_] = np.logical_and.reduce([length == lengths[0] for length in lengths])
    return equal


def _numbers(column: pa.Array) -> Float64:
    if pa.types.is_null(column.type):
        return np.zeros(0)
    return floats_of(column.flatten() if is_list(column.type) else column)
