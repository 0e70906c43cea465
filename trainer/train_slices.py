"""Slices of the training examples by one configured field: which there are, and which one an example is of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist

from pipelines.arrow_arrays import list_parts, one_array
from pipelines.batch import Batch, Int64
from pipelines.errors import DataError
from pipelines.hashing import ids_of, permutation
from pipelines.schema import Column, Schema
from pipelines.segments import Segment
from pipelines.storage import open_file
from trainer.config_sections import Telemetry
from trainer.guards.kept import Lists
from trainer.metrics.slices import GlobalSlices, SliceMetrics, SliceScope
from trainer.metrics.streaming import Addends
from trainer.recommender import Outputs
from trainer.runtime import Runtime
from trainer.slice_check import MOST
from trainer.wanted import OTHER

# For the most frequent values: so many files, spread over all of them, and of each row groups until so many rows.
MOST_FILES, MOST_ROWS = 8, 1 << 15
Value = str | int


@dataclass(frozen=True)
class Slices:
    """names: of the slices but the last, OTHER. ids: what batches carry of each, ascending with `order`."""

    field: str
    names: tuple[str, ...]
    ids: tuple[int, ...]

    @property
    def all_names(self) -> tuple[str, ...]:
        """OTHER comes last."""
        return (*self.names, OTHER)

    def of_examples(self, batch: Batch, schema: Schema, lists: Lists) -> Int64:
        """The slice of each supervised position of a batch. [S]"""
        found = batch.fields[self.field]
        ids_U = batch.tables[found.table].ids
        slice_U = np.full(len(ids_U), len(self.names))
        if len(ids_U):
            at = np.searchsorted(ids_U, self.ids).clip(max=len(ids_U) - 1)
            there = np.flatnonzero(ids_U[at] == np.array(self.ids, np.int64))
            slice_U[at[there]] = there
        slice_P = slice_U[found.inverse]
        return slice_P if schema.columns[self.field].group else np.repeat(slice_P, lists.lengths(batch))


def find_slices(schema: Schema, telemetry: Telemetry, segments: Sequence[Segment]) -> Slices:
    """The given values, or the most frequent ones of a sample of the rows. Raises DataError: a file cannot be read."""
    field = telemetry.slice_by
    column = schema.columns[field]
    if telemetry.slice_values:
        values: list[Value] = list(dict.fromkeys(telemetry.slice_values))
    else:
        counts = _counted(field, column, [file for segment in segments for file in segment.files])
        values = [value for value, _ in sorted(counts.items(), key=lambda item: (-item[1], str(item[0])))][: MOST - 1]
    if column.kind == "bucket":
        return Slices(field, tuple(_bucket_name(column, int(v)) for v in values), tuple(int(v) for v in values))
    ids = [int(ids_of(pa.array([value]))[0]) for value in values]
    return Slices(field, tuple(map(str, values)), tuple(ids))


def _counted(field: str, column: Column, files: Sequence[str]) -> Counter[Value]:
    """Values of some rows of some files; nulls left out."""
    found: Counter[Value] = Counter()
    chosen = {len(files) * place // MOST_FILES for place in range(MOST_FILES)} if files else set()
    for file in (files[index] for index in sorted(chosen)):
        try:
            arrays = _sampled(file, field)
        except (OSError, pa.ArrowException) as error:
            raise DataError(
                f"'{file}' cannot be read ({error}) → telemetry.slice_by counts values there → mend it"
            ) from error
        for array in arrays:
            found.update(_values(list_parts(array)[0] if column.group else array, column))
    return found


def _sampled(file: str, field: str) -> list[pa.Array]:
    """The column's row groups, in a mixed order, until there are rows enough; none where the file lacks it."""
    arrays: list[pa.Array] = []
    with open_file(file) as handle:
        parquet = pq.ParquetFile(handle)
        if field not in parquet.schema_arrow.names:
            return arrays
        for group in permutation(parquet.num_row_groups, 0).tolist():
            arrays.append(one_array(parquet.read_row_group(group, columns=[field]).column(0)))
            if sum(map(len, arrays)) >= MOST_ROWS:
                break
    return arrays


def _values(array: pa.Array, column: Column) -> Counter[Value]:
    if column.kind == "bucket":
        numbers = array.cast(pa.float64()).drop_null().to_numpy(zero_copy_only=False)
        return Counter(np.searchsorted(column.boundaries, numbers[~np.isnan(numbers)], side="right").tolist())
    counts = one_array(array).drop_null().value_counts()
    return Counter(dict(zip(counts.field(0).to_pylist(), counts.field(1).to_pylist(), strict=True)))


def _bucket_name(column: Column, bucket: int) -> str:
    """`< 18`, `18 – 30`, `≥ 50`."""
    boundaries = [f"{boundary:g}" for boundary in column.boundaries]
    if bucket == 0:
        return f"< {boundaries[0]}"
    return f"≥ {boundaries[-1]}" if bucket == len(boundaries) else f"{boundaries[bucket - 1]} – {boundaries[bucket]}"


class SliceReport:
    """The metrics per slice of a run: started once, told of every step, reduced with the other metrics."""

    def __init__(self, schema: Schema, telemetry: Telemetry, runtime: Runtime) -> None:
        self._schema, self._telemetry, self._runtime = schema, telemetry, runtime
        self._lists = Lists(tuple(schema.tasks), schema.supervised_history if schema.supervision == "history" else "")
        self._slices: Slices | None = None
        self.metrics: SliceMetrics | None = None

    def start(self, segments: Sequence[Segment]) -> None:
        """Collective, before the first step: which slices there are, where no checkpoint has said so."""
        if self.metrics is not None:
            return
        told: list[Any] = [None, None]
        if self._runtime.is_first:
            try:
                told[0] = find_slices(self._schema, self._telemetry, segments)
            except DataError as error:
                told[1] = error
        if self._runtime.world_size > 1:
            dist.broadcast_object_list(told, src=0, group=self._runtime.control)
        if told[1] is not None:
            raise told[1]
        self._begin(told[0])

    def after_step(self, outputs: Outputs, found: Addends) -> None:
        """Adds the step. found: of TaskMetrics.update."""
        assert self._slices is not None
        assert self.metrics is not None
        slice_S = torch.from_numpy(self._slices.of_examples(outputs.host, self._schema, self._lists))
        slice_S = slice_S.to(outputs.labels_SK.device, non_blocking=True)
        self.metrics.update(slice_S, found)

    @property
    def field(self) -> str:
        """What the slices are of."""
        return self._telemetry.slice_by

    def reset(self, scope: SliceScope) -> None:
        """See SliceMetrics; nothing before the start."""
        if self.metrics is not None:
            self.metrics.reset(scope)

    def reduced(self) -> GlobalSlices:
        """Collective."""
        assert self.metrics is not None
        return self.metrics.reduced(self._runtime.control)

    def state(self) -> dict[str, Any] | None:
        """Collective: what a checkpoint keeps; None before the start."""
        if self._slices is None:
            return None
        kept = {"names": list(self._slices.names), "ids": list(self._slices.ids), "asked": self._asked()}
        return kept | {"sums": self.reduced().state()}

    def restore(self, saved: dict[str, Any] | None) -> None:
        """The inverse: the same slices as before, unless other ones are asked for."""
        if saved is None or saved["asked"] != self._asked():
            return
        self._begin(Slices(self._telemetry.slice_by, tuple(saved["names"]), tuple(saved["ids"])))
        assert self.metrics is not None
        self.metrics.load(saved["sums"], self._runtime.rank)

    def _asked(self) -> list[Value]:
        return [self._telemetry.slice_by, *self._telemetry.slice_values]

    def _begin(self, slices: Slices) -> None:
        self._slices = slices
        self.metrics = SliceMetrics(tuple(self._schema.tasks), slices.all_names, self._runtime.device)
