"""What an evaluation keeps beside its scores: slices by a field, and files of predictions with the ids of the data.

Sizes: R request rows · S supervised positions · K tasks.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch.distributed as dist

from pipelines.batch import TRAINED, Batch, Int64
from pipelines.row_columns import (
    RowColumns,
    as_type,
    column_types,
    is_list,
    list_lengths,
    per_position,
    repeated,
    widest,
)
from pipelines.schema import Schema
from pipelines.segments import Segment
from trainer.errors import ConfigError
from trainer.metrics.exact import Gauc, evaluate_task, gauc
from trainer.metrics.exchange import Exchange
from trainer.metrics.values import TaskValues
from trainer.prediction_files import FILE, OWN, POSITION, ROW, Manifest, PredictionWriter, task_columns, write_manifest
from trainer.runtime import Runtime
from trainer.slices import Slicer, as_words
from trainer.telemetry.records import Slices
from trainer.wanted import Wanted

log = logging.getLogger(__name__)

Array = npt.NDArray[Any]
Of = Mapping[str, Mapping[str, Array]]
TIME = pa.timestamp("us", "UTC")


@dataclass(frozen=True)
class Scored:
    """A batch's predictions in host memory: float32 [S, K]."""

    probabilities_SK: Array
    labels_SK: Array
    weights_SK: Array

    @property
    def is_example(self) -> npt.NDArray[np.bool_]:
        """Positions that are an example of some task."""
        return np.asarray((self.weights_SK > 0).any(axis=1))


@contextmanager
def detailed(
    schema: Schema, segments: tuple[Segment, ...], wanted: Wanted, about: Manifest, runtime: Runtime
) -> Iterator[Detail | None]:
    """None where nothing is wanted. On an error no half-written file stays."""
    detail = Detail(schema, segments, wanted, about, runtime) if wanted.by or wanted.predictions else None
    try:
        yield detail
    finally:
        if detail is not None:
            detail.abandon()


def score(tasks: Of, exchange: Exchange) -> tuple[dict[str, TaskValues], dict[str, Gauc]]:
    """Of all ranks' predictions. Collective."""
    values = {t: evaluate_task(a["probability"], a["label"], a["weight"], exchange) for t, a in tasks.items()}
    by_user = {t: gauc(a["probability"], a["label"], a["user"], a["weight"], exchange) for t, a in tasks.items()}
    return values, by_user


class Detail:
    """Shown every batch of an evaluation, on every rank. Raises ConfigError: there is no such field, or names clash."""

    def __init__(
        self, schema: Schema, segments: tuple[Segment, ...], wanted: Wanted, manifest: Manifest, runtime: Runtime
    ) -> None:
        self._schema, self._segments, self._runtime = schema, segments, runtime
        self._by = wanted.by
        spec = schema.columns.get(wanted.by)
        self._boundaries = () if spec is None or spec.kind != "bucket" else spec.boundaries
        self._group = schema.supervised_group
        # It is in every file: it says how long lists were before they were cut.
        self._label = next(task.label for task in schema.tasks.values() if task.label)
        columns = data_columns(schema) if wanted.predictions else {}
        self._named = [name for names in columns.values() for name in names]
        files = [file for segment in segments for file in segment.files]
        names = list(dict.fromkeys([*self._named, *([self._by] if self._by else []), self._label]))
        kinds = column_types(files, names)
        for name in sorted(set(self._named) - kinds.keys()):
            log.warning("column '%s' is in none of the files that were looked at → predictions are without it", name)
        self._in_group = {n for n in kinds if is_list(kinds[n]) and _may_be_listed(schema, n)}
        self._kinds = {n: widest(kind.value_type if n in self._in_group else kind) for n, kind in kinds.items()}
        if self._by:
            self._check_by(kinds)
        self._named = [name for name in self._named if name in self._kinds and not is_list(self._kinds[name])]
        self._rows = RowColumns(names)
        self._slicer = Slicer() if self._by else None
        self._writer: PredictionWriter | None = None
        if wanted.predictions:
            kept = {role: tuple(n for n in names if n in self._named) for role, names in columns.items()}
            self._time = time_column(schema)
            self._manifest = replace(
                manifest,
                user="".join(kept["user"]),
                request=kept["request"],
                candidate=kept["candidate"],
                group=self._group,
                time=self._time,
                by=self._by,
                boundaries=self._boundaries,
            )
            self._writer = PredictionWriter(Path(wanted.predictions), runtime.rank, self._file_schema())

    def saw(self, host: Batch, scored: Scored) -> npt.NDArray[np.int32] | None:
        """The code of each position's slice [S], None where no slices are wanted."""
        lengths_R = host.candidate_lengths
        if self._group != "candidates":
            lengths_R = host.history_lengths[self._group.removeprefix("history.")]
        lengths_R = lengths_R.astype(np.int64)
        counts_R = np.zeros(len(lengths_R), bool) if host.filler else host.status == TRAINED
        kept_S = np.repeat(counts_R, lengths_R)
        values, place_S = self._values(host, np.flatnonzero(counts_R), lengths_R[counts_R])
        codes_S = None
        if self._slicer is not None:
            codes_S = np.zeros(len(kept_S), np.int32)
            words = as_words(values[self._by], self._boundaries)
            codes_S[kept_S] = self._slicer.codes(words, scored.is_example[kept_S])
        if self._writer is not None:
            self._write(host, scored, kept_S, np.repeat(np.arange(len(lengths_R)), lengths_R), values, place_S)
        return codes_S

    def finish(self, tasks: Of, exchange: Exchange) -> Slices | None:
        """Files are complete, and slices scored. Collective."""
        if self._writer is not None:
            self._writer.close()
            parts: list[Any] = [(self._writer.name, self._writer.rows)]
            if exchange.size > 1:
                own, parts = parts[0], [None] * exchange.size
                dist.all_gather_object(parts, own, group=self._runtime.control)
            if self._runtime.is_first:
                write_manifest(self._writer.folder, replace(self._manifest, parts=dict(parts)))
        if self._slicer is None:
            return None
        chosen = self._slicer.choose(self._runtime.control)
        found = {}
        for place, value in enumerate(chosen.values):
            own_tasks = {}
            for task, arrays in tasks.items():
                codes = arrays.get("slice", np.empty(0, np.int32))
                here = chosen.codes[codes] == place
                own_tasks[task] = {name: column[here] for name, column in arrays.items()}
            found[value] = score(own_tasks, exchange)
        return Slices(self._by, found, chosen.others)

    def abandon(self) -> None:
        """After an error: nothing half-written stays."""
        if self._writer is not None:
            self._writer.abandon()

    def _values(self, host: Batch, rows: Int64, lengths_R: Int64) -> tuple[dict[str, pa.Array], Int64]:
        """Of the positions of these rows: what each column says, and where in its row's list each is."""
        total = int(lengths_R.sum())
        if not len(rows):
            return {n: pa.nulls(0, kind) for n, kind in self._kinds.items()}, np.zeros(0, np.int64)
        files = self._segments[host.position.segment].files
        table = self._rows.take(files, host.file[rows], host.row[rows])
        values, place_S = {}, np.arange(total) - np.repeat(np.cumsum(lengths_R) - lengths_R, lengths_R)
        whole_R = list_lengths(table[self._label]) if self._label in self._in_group else lengths_R
        for name, kind in self._kinds.items():
            if name in self._in_group:
                column, place_S = per_position(name, table[name], lengths_R, whole_R)
            else:
                column = repeated(table[name], lengths_R)
            values[name] = as_type(column, kind)
        return values, place_S

    def _write(
        self,
        host: Batch,
        scored: Scored,
        kept_S: npt.NDArray[np.bool_],
        row_S: Int64,
        values: dict[str, pa.Array],
        place_S: Int64,
    ) -> None:
        assert self._writer is not None
        if self._group == "candidates":
            times_S = host.request_time[row_S]
            chosen = np.ones(int(kept_S.sum()), bool)
        else:  # context events are scored too, and teach nothing
            times_S = host.times[self._group.removeprefix("history.")]
            chosen = scored.is_example[kept_S]
        at = np.flatnonzero(kept_S)[chosen]
        files, row_S = self._segments[host.position.segment].files, row_S[at]
        used, file_S = np.unique(host.file[row_S], return_inverse=True)
        columns: dict[str, pa.Array] = {
            FILE: pa.DictionaryArray.from_arrays(pa.array(file_S.astype(np.int32)), [files[f] for f in used]),
            ROW: pa.array(host.row[row_S]),
            POSITION: pa.array(place_S[chosen].astype(np.int32)),
        }
        columns |= {name: values[name].filter(pa.array(chosen)) for name in self._file_columns()}
        if self._time:
            columns[self._time] = pa.array(times_S[at]).cast(TIME)
        for k, task in enumerate(self._schema.tasks):
            probability, label, weight = task_columns(task)
            weight_S = scored.weights_SK[at, k]
            columns[probability] = pa.array(scored.probabilities_SK[at, k])
            columns[label] = pa.array(scored.labels_SK[at, k].astype(np.int8), mask=weight_S == 0)
            columns[weight] = pa.array(weight_S)
        self._writer.add(columns)

    def _file_columns(self) -> list[str]:
        by = [self._by] if self._by and self._by in self._kinds else []
        return [name for name in dict.fromkeys([*self._named, *by]) if name != self._time]

    def _file_schema(self) -> pa.Schema:
        fields = list(OWN.items()) + [(name, self._kinds[name]) for name in self._file_columns()]
        fields += [(self._time, TIME)] if self._time else []
        for task in self._schema.tasks:
            fields += zip(task_columns(task), (pa.float32(), pa.int8(), pa.float32()), strict=True)
        names = [name for name, _ in fields]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigError(
                f"columns {', '.join(twice)} of the data are named like those of predictions → each has a name of its "
                "own → rename them in the schema (its `source` says what they are in the log)"
            )
        return pa.schema(fields)

    def _check_by(self, kinds: Mapping[str, pa.DataType]) -> None:
        spec = self._schema.columns.get(self._by)
        if self._by not in kinds:
            known = ", ".join(sorted(n for n, c in self._schema.columns.items() if c.group in ("", self._group)))
            raise ConfigError(
                f"--by {self._by} → it names a column of the rows, one value a row or a position → one of: {known}"
            )
        if spec is not None and spec.group not in ("", self._group):
            raise ConfigError(
                f"--by {self._by} → it is a column of {spec.group}, and {self._group} is what is predicted → name a "
                "column of a row or of its supervised positions"
            )
        if is_list(self._kinds[self._by]):
            raise ConfigError(f"--by {self._by} → its values are lists → name a column of single values")


def data_columns(schema: Schema) -> dict[str, list[str]]:
    """What predictions carry of the data, by what it is for: request (ids and keys of a request), user, candidate (ids
    and keys of a supervised position)."""
    group = schema.supervised_group
    keys = {g: [n for n, c in schema.columns.items() if c.role == "key" and c.group == g] for g in ("", group)}
    request = schema.column_with_role("request")
    item = next((n for n, c in schema.columns.items() if (c.role, c.kind, c.group) == ("item", "id", group)), None)
    static = [name for name in ([request] if request else []) + keys[""] if name != schema.user]
    return {
        "request": static,
        "user": [schema.user] if schema.user else [],
        "candidate": ([item] if item else []) + keys[group],
    }


def time_column(schema: Schema) -> str:
    """Of the request, or of the supervised event."""
    if schema.supervision == "history":
        return schema.histories[schema.supervised_history].time
    return schema.column_with_role("time") or ""


def _may_be_listed(schema: Schema, name: str) -> bool:
    """Whether a list column holds a value for each supervised position."""
    spec = schema.columns.get(name)
    return spec is None or spec.group == schema.supervised_group
