"""Which segment an event is in: its day, or its side of cuts through the global order of all supervised events.

The cuts are found without sorting the log: partitions count supervised events in bins of time, the bins that hold a cut
are looked at again, and only their keys (time, user, tie keys) are sorted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.batch import Int64
from pipelines.errors import DataError
from pipelines.prepare_events import Events, read_events, sort_value
from pipelines.prepare_job import FRACTION_NAMES, Job
from pipelines.prepare_rows import find_supervised

BINS = 65_536
DAY_MICROS = 86_400_000_000
Key = tuple[Any, ...]
RunTasks = Callable[[Callable[[int], Any], int], list[Any]]


def segment_codes(job: Job, events: Events, cuts: Sequence[Key]) -> Int64:
    """[E] int64, ascending with time: the UTC day since 1970, or how many cuts are not after the event."""
    if job.settings.split == "time":
        return events.time_E // DAY_MICROS
    columns = _key_columns(job, events)
    codes = np.zeros(len(events.time_E), np.int64)
    for cut in cuts:
        codes += 1 - _before(columns, cut).to_numpy(zero_copy_only=False).astype(np.int64)
    return codes


def segment_folder(job: Job, code: int) -> str:
    """Hive folder of a segment."""
    if job.settings.split == "time":
        return f"dt={(datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=code)).date().isoformat()}"
    return f"segment={FRACTION_NAMES[len(job.settings.fractions)][code]}"


def find_cuts(job: Job, first: int, last: int, run: RunTasks) -> list[Key]:
    """Keys of the first event of each segment but the first; [] where days are the segments.

    Sizes are rounded down and the last segment takes the rest, as ReLLa's split does. Equal keys stay together.
    Raises DataError where nothing is to be supervised.
    """
    if job.settings.split == "time":
        return []
    width = (last - first) // BINS + 1
    counts: Counter[int] = Counter()
    for part in run(lambda p: _histogram(job, p, first, width), job.partitions):
        counts.update({int(b): n for b, n in part})
    total = sum(counts.values())
    if total == 0:
        least = job.settings.min_history
        raise DataError(
            f"no event has {least} earlier events of its user → data.prepare.min_history asks for them → lower it"
        )
    sizes = [int(Fraction(str(share)) * total) for share in job.settings.fractions[:-1]]
    ranks = [sum(sizes[: place + 1]) for place in range(len(sizes))]
    bins = sorted(counts)
    before = dict(zip(bins, np.cumsum([0, *(counts[b] for b in bins[:-1])]).tolist(), strict=True))
    bin_of = [max(b for b in bins if before[b] <= rank) for rank in ranks]
    keys: dict[int, list[Key]] = {b: [] for b in bin_of}
    for part in run(lambda p: _keys(job, p, first, width, sorted(keys)), job.partitions):
        for b, *key in part:
            keys[b].append(tuple(key))
    return [sorted(keys[b])[rank - before[b]] for b, rank in zip(bin_of, ranks, strict=True)]


def _histogram(job: Job, partition: int, first: int, width: int) -> list[list[int]]:
    """[bin, supervised events in it]."""
    events = read_events(job, partition, _filters(job))
    time_F = events.time_E[_wanted(job, events)]
    bins, counts = np.unique((time_F - first) // width, return_counts=True)
    return [[int(b), int(n)] for b, n in zip(bins, counts, strict=True)]


def _keys(job: Job, partition: int, first: int, width: int, bins: Sequence[int]) -> list[list[Any]]:
    """[bin, time, user, *tie keys] of the supervised events in these bins."""
    events = read_events(job, partition, _filters(job))
    event_F = _wanted(job, events)
    bin_F = (events.time_E[event_F] - first) // width
    inside = np.isin(bin_F, bins)
    chosen = pa.array(event_F[inside])
    columns = [bin_F[inside].tolist(), *(column.take(chosen).to_pylist() for column in _key_columns(job, events))]
    return [list(row) for row in zip(*columns, strict=True)]


def _wanted(job: Job, events: Events) -> Int64:
    supervised = find_supervised(job, events)
    return supervised.event_F[supervised.enough_F]


def _filters(job: Job) -> list[str]:
    return list(job.settings.history_filter.values())


def _key_columns(job: Job, events: Events) -> list[pa.ChunkedArray]:
    names = (job.user, *job.settings.tie_keys)
    return [pa.chunked_array([pa.array(events.time_E)]), *(sort_value(events.table[name]) for name in names)]


def _before(columns: Sequence[pa.ChunkedArray], key: Key) -> pa.ChunkedArray:
    """Which events come before the key, in the order of the columns."""
    before = pc.less(columns[-1], key[-1])
    for column, value in zip(columns[-2::-1], key[-2::-1], strict=True):
        before = pc.or_(pc.less(column, value), pc.and_(pc.equal(column, value), before))
    return before
