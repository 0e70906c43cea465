"""Which segment an event is in: its day, its side of cuts through the global order of all supervised events, its user's
share, or its file's by the manifest.

The cuts are found without sorting the log: partitions count supervised events in bins of time, the bins that hold a cut
are looked at again, and only their keys (time, user, tie keys) are sorted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.batch import Int64
from pipelines.config import Prepare
from pipelines.errors import DataError
from pipelines.hashing import derive_seed, ids_of, mix
from pipelines.prepare_events import Events, read_events, sort_value
from pipelines.prepare_job import FRACTION_NAMES, SEGMENT, Job
from pipelines.prepare_rows import find_supervised

BINS = 65_536
DAY_MICROS = 86_400_000_000
Key = tuple[Any, ...]
RunTasks = Callable[[Callable[[int], Any], int], list[Any]]


def segment_codes(job: Job, events: Events, cuts: Sequence[Key]) -> Int64:
    """[E] int64, ascending with time among a user's events: the UTC day since 1970, how many cuts are not after the
    event, the user's place in FRACTION_NAMES, or the file's in job.segments."""
    if job.settings.split == "time":
        return events.time_E // DAY_MICROS
    if job.settings.split == "users":
        return user_codes(ids_of(events.table[job.user]), job.settings)
    if job.settings.split == "manifest":
        codes_E: Int64 = events.table[SEGMENT].to_numpy().astype(np.int64)
        return codes_E
    columns = _key_columns(job, events)
    codes = np.zeros(len(events.time_E), np.int64)
    for cut in cuts:
        codes += 1 - _before(columns, cut).to_numpy(zero_copy_only=False).astype(np.int64)
    return codes


def segment_folder(job: Job, code: int) -> str:
    """Hive folder of a segment."""
    if job.settings.split == "time":
        return f"dt={(datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=code)).date().isoformat()}"
    if job.settings.split == "manifest":
        return f"segment={job.segments[code]}"
    return f"segment={FRACTION_NAMES[len(job.settings.fractions)][code]}"


def user_codes(id_E: Int64, settings: Prepare) -> Int64:
    """[E] int64, whole users dealt by a hash of (user, split_seed): which share of 0 … 2^64 it lies in.

    Of a seed of its own: independent of the partitions and of the order of the rows, which hash users too.
    """
    hash_E = mix(id_E, derive_seed("split by user", settings.split_seed))
    shares = [Fraction(str(share)) for share in settings.fractions]
    ends = [int(sum(shares[: place + 1]) / sum(shares) * 2**64) for place in range(len(shares) - 1)]
    return np.searchsorted(np.array(ends, np.uint64), hash_E, side="right").astype(np.int64)


def check_segment_times(job: Job, spans: Iterable[tuple[int, int, int]]) -> list[str]:
    """Segments of a manifest are trained in name order, which must be that of time: every event of one comes before
    every event of the next. spans: (index into job.segments, first, last µs), any number of each; those without events
    have first > last. A line for each two that overlap."""
    found: dict[int, tuple[int, int]] = {}
    for code, first, last in spans:
        if job.segments and first <= last:
            before = found.get(code, (first, last))
            found[code] = min(first, before[0]), max(last, before[1])
    return [
        f"segment '{job.segments[low]}' has events up to {_moment(found[low][1])}, '{job.segments[high]}' from "
        f"{_moment(found[high][0])} on → segments of a manifest are in time order by name and do not overlap → name "
        "them so, or split by time"
        for low, high in pairwise(sorted(found))
        if found[low][1] >= found[high][0]
    ]


def _moment(micros: int) -> str:
    try:
        return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=micros)).isoformat()
    except OverflowError:
        return f"{micros:,} µs since 1970"


def find_cuts(job: Job, first: int, last: int, run: RunTasks) -> list[Key]:
    """Keys of the first event of each segment but the first; [] where segments are no fractions of the events.

    Sizes are rounded down and the last segment takes the rest, as ReLLa's split does. Equal keys stay together.
    Raises DataError where nothing is to be supervised.
    """
    if job.settings.split != "fractions":
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
