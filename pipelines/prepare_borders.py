"""Where the events of one user, too many for memory, are cut into slices of time.

A cut lies between two times, and within no request. Times are counted in bins, and a request that lasts closes the
edges of bins that it lies across; a stretch without an open edge that holds too many events is looked at again in finer
bins, and at last in memory. So memory does not grow with the number of events; each look reads times and requests only.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipelines.batch import Int64
from pipelines.hashing import ids_of, mix
from pipelines.prepare_events import DAY_MICROS, micros, user_hash
from pipelines.prepare_runs import RunWriter, read_place, read_places
from pipelines.prepare_shuffle import run_limit
from pipelines.prepare_work import Work

BINS = 65_536
KEY_BYTES = 150  # an event's, while the requests of a bucket are told apart
KEYS = pa.schema([("time", pa.int64()), ("request", pa.int64())])


@dataclass(frozen=True)
class Stretch:
    """Events with first ≤ time < end."""

    first: int
    end: int
    events: int


@dataclass(frozen=True)
class Keys:
    """Some of the user's events. time_E: microseconds. first_Q, last_Q: times between which requests last."""

    time_E: Int64
    first_Q: Int64
    last_Q: Int64

    def within(self, stretch: Stretch) -> Keys:
        """What of it is in a stretch, requests cut off at its ends."""
        inside = (self.time_E >= stretch.first) & (self.time_E < stretch.end)
        meets = (self.last_Q >= stretch.first) & (self.first_Q < stretch.end)
        first_Q = np.maximum(self.first_Q[meets], stretch.first)
        return Keys(self.time_E[inside], first_Q, np.minimum(self.last_Q[meets], stretch.end - 1))


Look = Callable[[], Iterator[Keys]]


def find_borders(work: Work, folder: str, place: int, user: int, events: int, most: int) -> Int64:
    """Ascending times at which slices of at most `most` events begin, all but the first; slices are longer where no cut
    can be made. The user's events are in a place of the folder's runs, with others'."""
    request = work.job.settings.request if work.job.schema.supervision == "candidates" else ""
    scratch = f"{folder}-keys-{place}"

    def look() -> Iterator[Keys]:
        if request:
            return _requests(work, scratch, events)
        return (Keys(time_E, time_E[:0], time_E[:0]) for time_E, _ in _keys(work, folder, place, user, ""))

    try:
        if request:
            _deal_requests(work, folder, place, user, request, scratch, events)
        span = [(int(keys.time_E.min()), int(keys.time_E.max())) for keys in look() if len(keys.time_E)]
        first, end = min(low for low, _ in span), max(high for _, high in span) + 1
        stretches = list(_split(look, Stretch(first, end, events), most, work.limit // KEY_BYTES))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    cuts, held = [], 0
    for stretch in stretches:
        if held and held + stretch.events > most:
            cuts.append(stretch.first)
            held = 0
        held += stretch.events
    return np.array(cuts, np.int64)


def _split(look: Look, whole: Stretch, most: int, exact: int) -> Iterator[Stretch]:
    """The stretches between places where a cut can be made; those of up to `exact` events are told apart in memory."""
    if whole.events <= exact:
        yield from _split_exactly(look, whole)
        return
    width = (whole.end - whole.first) // min(64 * (whole.events // most + 1), BINS) + 1
    bins = -(-(whole.end - whole.first) // width)
    counts, closed = np.zeros(bins, np.int64), np.zeros(bins + 1, np.int64)
    for keys in look():
        part = keys.within(whole)
        counts += np.bincount((part.time_E - whole.first) // width, minlength=bins)
        first_Q, last_Q = (part.first_Q - whole.first) // width, (part.last_Q - whole.first) // width
        closed += np.bincount(first_Q + 1, minlength=bins + 1) - np.bincount(last_Q + 1, minlength=bins + 1)
    edges = np.append(np.flatnonzero(np.cumsum(closed[:bins]) == 0), bins)
    totals = np.add.reduceat(counts, edges[:-1])
    for low, high, events in zip(edges[:-1].tolist(), edges[1:].tolist(), totals.tolist(), strict=True):
        stretch = Stretch(whole.first + low * width, min(whole.first + high * width, whole.end), events)
        finer = width > 1 and (stretch.first, stretch.end) != (whole.first, whole.end)
        if events > most and finer:
            yield from _split(look, stretch, most, exact)
        elif events:
            yield stretch


def _split_exactly(look: Look, whole: Stretch) -> Iterator[Stretch]:
    found = [keys.within(whole) for keys in look()]
    times, counts = np.unique(np.concatenate([keys.time_E for keys in found]), return_counts=True)
    closed = np.zeros(len(times) + 1, np.int64)
    np.add.at(closed, np.searchsorted(times, np.concatenate([keys.first_Q for keys in found])) + 1, 1)
    last_Q = np.concatenate([keys.last_Q for keys in found])
    np.add.at(closed, np.searchsorted(times, last_Q, side="right"), -1)
    starts = np.flatnonzero(np.cumsum(closed[:-1]) == 0)
    totals = np.add.reduceat(counts, starts) if len(starts) else counts[:0]
    ends = np.append(times[starts[1:]], whole.end)
    for first, end, events in zip(times[starts].tolist(), ends.tolist(), totals.tolist(), strict=False):
        yield Stretch(first, end, events)


def _keys(work: Work, folder: str, place: int, user: int, request: str) -> Iterator[tuple[Int64, Int64]]:
    """Times of the user's events and codes of their requests, run by run."""
    job = work.job
    for table in read_place(folder, [place], job.log_schema, [*job.required]):
        mine = np.flatnonzero(user_hash(job, table) == np.uint64(user))
        time_E = micros(table[job.time], job.schema.time_unit)[mine]
        yield time_E, _request_codes(table[request])[mine] if request else time_E[:0]


def _deal_requests(work: Work, folder: str, place: int, user: int, request: str, scratch: str, events: int) -> None:
    """Times and requests, dealt so that a request is in one bucket."""
    buckets = _buckets(work, events)

    def deal(table: pa.Table) -> Int64:
        return (mix(ids_of(table["request"]), 1) % np.uint64(buckets)).astype(np.int64)

    writer = RunWriter(scratch, "000000", buckets, deal, run_limit(work))
    for time_E, request_E in _keys(work, folder, place, user, request):
        writer.add(pa.table([time_E, request_E], schema=KEYS))
    writer.close()


def _buckets(work: Work, events: int) -> int:
    return math.ceil(events * KEY_BYTES / work.limit)


def _requests(work: Work, scratch: str, events: int) -> Iterator[Keys]:
    """The user's events and requests, bucket by bucket."""
    for bucket in range(_buckets(work, events)):
        table = read_places(scratch, [bucket], KEYS)
        time_E, request_E = table["time"].to_numpy(), table["request"].to_numpy()
        keys_E = [time_E, request_E]
        if work.job.settings.split == "time":  # a request ends with its segment
            keys_E.insert(1, time_E // DAY_MICROS)
        yield _lasting(time_E, keys_E)


def _lasting(time_E: Int64, keys_E: list[Int64]) -> Keys:
    """Requests with more than one time. keys_E: time, and what names a request."""
    order_E = np.lexsort(keys_E)
    starts_E = np.zeros(len(order_E), bool)
    starts_E[:1] = True
    for key_E in keys_E[1:]:
        starts_E[1:] |= key_E[order_E][1:] != key_E[order_E][:-1]
    starts = np.flatnonzero(starts_E)
    ends = np.append(starts[1:], len(order_E)) - 1
    first_Q, last_Q = time_E[order_E[starts]], time_E[order_E[ends[: len(starts)]]]
    lasts_Q = first_Q < last_Q
    return Keys(time_E, first_Q[lasts_Q], last_Q[lasts_Q])


def _request_codes(column: pa.ChunkedArray) -> Int64:
    """Equal requests, equal codes."""
    plain = pa.types.is_integer(column.type) or pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    return ids_of(column if plain else column.cast(pa.string()))
