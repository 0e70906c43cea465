"""Writes consumed/: what a rank's optimizer steps were made of, so that `audit` can hold it against the files.

What is recorded is read off the batch that the forward computed with, after it was computed: the rows it says it
holds, and the ids that its fields point at. Nobody's plan is asked.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from pipelines.batch import QUARANTINED, SAMPLED_OUT, TRAINED, Batch
from pipelines.schema import Schema
from pipelines.segments import Segment
from trainer.config import Config
from trainer.consumed_format import (
    Attempt,
    End,
    Int64,
    Part,
    Record,
    UInt64,
    encode_rows,
    file_name,
    files_of,
    folder_of,
    hashed_columns,
    id_hashes,
    in_hex,
    line_of,
    list_sums,
    name_below,
    name_hash,
    place_hashes,
    row_hashes,
    segment_version,
    total,
)
from trainer.run_dir import RunDir, fsync_directory, naming
from trainer.runtime import Runtime

Int32 = npt.NDArray[np.int32]
Bool = npt.NDArray[np.bool_]


@dataclass
class _Files:
    """A segment's. names, hashes: of those met so far, by their place in the plan's list."""

    folder: str
    files: tuple[str, ...]
    version: int | None
    names: dict[int, str] = field(default_factory=dict)
    hashes: dict[int, int] = field(default_factory=dict)

    def meet(self, file: int) -> int:
        """Hash of the file's name."""
        if file not in self.hashes:
            self.names[file] = name_below(self.folder, self.files[file])
            self.hashes[file] = name_hash(self.names[file])
        return self.hashes[file]


@dataclass
class _Open:
    """A record that is not written yet."""

    epoch: int
    segment: int
    name: str
    fingerprint: str
    window: int
    first_batch: int
    first_step: int
    batch: int
    step: int
    places: int = 0
    ids: int = 0
    counts: dict[int, int] = field(default_factory=lambda: dict.fromkeys((TRAINED, SAMPLED_OUT, QUARANTINED), 0))
    file_R: list[Int32] = field(default_factory=list)
    row_R: list[Int64] = field(default_factory=list)
    bad_R: list[Bool] = field(default_factory=list)


class Recorder:
    """Of one rank in one attempt. Not collective. Raises OSError where the disk is full."""

    def __init__(self, file: BinaryIO, schema: Schema, window_batches: int, segments: Sequence[Segment]) -> None:
        self._file, self._schema = file, schema
        self._window_batches, self._segments = window_batches, segments
        self._factors = hashed_columns(schema)
        self._files: dict[int, _Files] = {}
        self._open: _Open | None = None

    def trained(self, step: int, batch: Batch) -> None:
        """After the optimizer step, good or skipped, that this batch was this rank's share of."""
        record = self._record_of(step, batch)
        if batch.filler:
            return
        files = self._files_of(batch.position.segment)
        used, inverse_R = np.unique(batch.file, return_inverse=True)
        names_R = np.array([files.meet(int(file)) for file in used])[inverse_R]
        places_R = place_hashes(names_R, batch.row)
        bad_R = batch.status == QUARANTINED
        hashes_R = row_hashes(ids_of_rows(batch, self._schema, self._factors), places_R)
        record.places += total(places_R)
        record.ids += total(hashes_R[~bad_R])
        for status in record.counts:
            record.counts[status] += int(np.count_nonzero(batch.status == status))
        record.file_R.append(batch.file)
        record.row_R.append(batch.row)
        record.bad_R.append(bad_R)

    def ended(self, step: int) -> None:
        """The stream had no batch after this step."""
        self._write_open()
        self._file.write(line_of(End(step=step)))

    def flush(self) -> None:
        """Before a checkpoint's COMMIT: all steps so far are durable, and no record goes on after it."""
        with naming(self._file.name):
            self._write_open()
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """No more steps. May be called twice."""
        self._file.close()

    def _record_of(self, step: int, batch: Batch) -> _Open:
        at = batch.position
        window = at.batch - at.batch % self._window_batches
        record = self._open
        if record is not None:
            same = (record.epoch, record.segment, record.fingerprint, record.window)
            if same == (at.epoch, at.segment, at.fingerprint, window) and at.batch == record.batch + 1:
                record.batch, record.step = at.batch, step
                return record
            self._write_open()
        self._open = _Open(
            at.epoch, at.segment, at.name, at.fingerprint, window, at.batch, step, batch=at.batch, step=step
        )
        return self._open

    def _files_of(self, segment: int) -> _Files:
        if segment not in self._files:
            files = self._segments[segment].files
            folder = folder_of(files)
            self._files[segment] = _Files(folder, files, segment_version(folder))
        return self._files[segment]

    def _write_open(self) -> None:
        record, self._open = self._open, None
        if record is None:
            return
        files = self._files_of(record.segment)
        written = Record(
            epoch=record.epoch,
            segment=record.name,
            fingerprint=record.fingerprint,
            version=files.version,
            window=record.window,
            batches=(record.first_batch, record.batch),
            steps=(record.first_step, record.step),
            trained=record.counts[TRAINED],
            sampled_out=record.counts[SAMPLED_OUT],
            quarantined=record.counts[QUARANTINED],
            places=in_hex(record.places),
            ids=in_hex(record.ids),
            parts=_parts(record, files.names),
        )
        self._file.write(line_of(written))


def ids_of_rows(batch: Batch, schema: Schema, factors: Mapping[str, np.uint64]) -> UInt64:
    """What `row_hashes` takes, from what the batch hands to the model: a field's places in its table's unique ids."""
    by_table: dict[str, UInt64] = {}
    sums_R = np.zeros(batch.rows, np.uint64)
    groups: dict[str, UInt64] = {}
    for column, factor in factors.items():
        field_ids = batch.fields[column]
        if field_ids.table not in by_table:
            by_table[field_ids.table] = id_hashes(batch.tables[field_ids.table].ids)
        hashes = (by_table[field_ids.table] * factor)[field_ids.inverse]
        group = schema.columns[column].group
        if not group:
            sums_R += hashes
        elif group in groups:
            groups[group] += hashes
        else:
            groups[group] = hashes
    for group, hashes in groups.items():
        named = batch.history_lengths.get(group.removeprefix("history."))
        lengths_R = (batch.candidate_lengths if named is None else named).astype(np.int64)
        sums_R += list_sums(hashes, lengths_R, lengths_R)
    return sums_R


def open_recorder(
    run_dir: RunDir, config: Config, segments: Sequence[Segment], step: int, runtime: Runtime
) -> Recorder:
    """Collective. A new attempt of the run, from this step on; its files are durable when this returns."""
    number = torch.zeros(1, dtype=torch.int64)
    if runtime.is_first:
        run_dir.consumed.mkdir(parents=True, exist_ok=True)
        number += max(files_of(run_dir.consumed), default=-1) + 1
    if runtime.world_size > 1:
        dist.broadcast(number, group=runtime.control, group_src=0)
    attempt = Attempt(
        attempt=int(number),
        rank=runtime.rank,
        world_size=runtime.world_size,
        resumed_from=step,
        order=config.data.order,
        epochs=config.data.epochs,
        segments=tuple(segment.name for segment in segments) if runtime.is_first else (),
        time=time.time(),
    )
    file = (run_dir.consumed / file_name(attempt.attempt, runtime.rank)).open("xb")
    file.write(line_of(attempt))
    recorder = Recorder(file, config.schema, config.data.window_batches, segments)
    recorder.flush()
    fsync_directory(run_dir.consumed)
    return recorder


def _parts(record: _Open, names: Mapping[int, str]) -> tuple[Part, ...]:
    if not record.file_R:
        return ()
    file_R, row_R, bad_R = (np.concatenate(pieces) for pieces in (record.file_R, record.row_R, record.bad_R))
    parts = []
    for file in np.unique(file_R):
        mine = file_R == file
        bad = row_R[mine & bad_R]
        rows = encode_rows(row_R[mine])
        parts.append(Part(file=names[int(file)], rows=rows, quarantined=encode_rows(bad) if len(bad) else None))
    return tuple(parts)
