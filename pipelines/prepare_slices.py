"""A partition as slices that fit a task's share of memory, each with what its rows need of the past.

    cells that fit together       one slice: all events of their users
    a cell that does not fit      is dealt again, by users: as many slices as it takes, in the order of the hash
    a user who does not fit       slices in the order of time: the events of one, and the user's tail from those before

So the slices of a partition follow each other in (hash of user, time), as its rows do. What every slice of time holds
whole: requests, and rows of supervised events (an unfinished one is left to the next slice).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.batch import Int64
from pipelines.prepare_borders import find_borders
from pipelines.prepare_events import Events, in_order, micros, user_hash
from pipelines.prepare_job import Job
from pipelines.prepare_rows import Rows, find_supervised, make_rows
from pipelines.prepare_runs import RunWriter, place_sizes, read_place, read_places
from pipelines.prepare_shuffle import run_limit
from pipelines.prepare_split import Key, segment_codes
from pipelines.prepare_tail import needed_later
from pipelines.prepare_work import Work, cell_place, cost

Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Slice:
    """Events in order with their segments, and the rows to be written of them.

    whole: the partition has no other slice. states: of `Work.states`, those to be saved from this slice: all its users'
    events up to that day are here, or their tail is.
    """

    events: Events
    segment_E: Int64
    rows: Rows
    states: tuple[int, ...]
    whole: bool = False


def slices(work: Work, partition: int, cuts: Sequence[Key]) -> Iterator[Slice]:
    """Slices of a partition in the order of its rows."""
    groups = list(_groups(work, partition))
    for folder, places, fits in groups:
        if fits:
            events = in_order(work.job, read_places(folder, places, work.job.log_schema))
            segment_E = segment_codes(work.job, events, cuts)
            rows = _rows(work, events, segment_E, 0)
            yield Slice(events, segment_E, rows, work.states, whole=len(groups) == 1)
            del events, segment_E, rows  # before the next are read
        else:
            yield from _by_user(work, partition, folder, places[0], cuts)


def _rows(work: Work, events: Events, segment_E: Int64, done: int) -> Rows:
    """Rows of the events from place `done` on that are in segments to be made."""
    new_E = np.arange(len(segment_E)) >= done
    if work.after is not None:
        new_E &= segment_E > work.after
    borders_E = segment_E if work.job.settings.split == "time" else None
    supervised = find_supervised(work.job, events, borders_E, new_E)
    return make_rows(work.job, events, supervised, segment_E)


def _groups(work: Work, partition: int) -> Iterator[tuple[str, list[int], bool]]:
    """(folder, consecutive places in it, whether they fit together) in the order of the hash; empty cells are left
    out."""
    cells: dict[str, list[int]] = {}
    for cell in work.cells_of(partition):
        folder, place = cell_place(work.job.shuffle, cell)
        cells.setdefault(folder, []).append(place)
    for folder, places in cells.items():
        costs = [cost(*size) for size in zip(*(a.tolist() for a in place_sizes(folder, places)), strict=True)]
        group: list[int] = []
        held = 0
        for place, needed in zip(places, costs, strict=True):
            if group and held + needed > work.limit:
                yield folder, group, held <= work.limit
                group, held = [], 0
            if needed:
                group.append(place)
                held += needed
        if group:
            yield folder, group, held <= work.limit


def _by_user(work: Work, partition: int, folder: str, place: int, cuts: Sequence[Key]) -> Iterator[Slice]:
    """A cell that does not fit, dealt again."""
    job, dealt = work.job, f"{work.job.shuffle}/dealt-{partition:05d}"
    rows, size = (int(found[0]) for found in place_sizes(folder, [place]))
    most = max(work.limit * rows // cost(rows, size), 1)
    ends_G, events_G = _group_users(*_count_users(work, folder, place), most)
    borders = {
        int(end): find_borders(work, folder, place, int(end), events, most)
        for end, events in zip(ends_G, events_G.tolist(), strict=True)
        if events > most
    }
    counts_G = np.array([len(borders.get(int(end), ())) + 1 for end in ends_G])
    first_G = np.cumsum(counts_G) - counts_G

    def deal(table: pa.Table) -> Int64:
        hash_E, time_E = user_hash(job, table), micros(table[job.time], job.schema.time_unit)
        group_E = np.searchsorted(ends_G, hash_E)
        place_E: Int64 = first_G[group_E]
        for end, border in borders.items():
            mine = np.flatnonzero(hash_E == np.uint64(end))
            place_E[mine] += np.searchsorted(border, time_E[mine], side="right")
        return place_E

    writer = RunWriter(dealt, "000000", int(counts_G.sum()), deal, run_limit(work))
    for table in read_place(folder, [place], job.log_schema):
        writer.add(table)
    writer.close()
    for first, count in zip(first_G.tolist(), counts_G.tolist(), strict=True):
        yield from _in_time(work, dealt, range(first, first + count), cuts)
    shutil.rmtree(dealt)


def _in_time(work: Work, folder: str, places: Sequence[int], cuts: Sequence[Key]) -> Iterator[Slice]:
    """Users whose events are in consecutive places, in the order of time: of many users one place, of one many."""
    job = work.job
    tail: pa.Table | None = None
    done, saved = 0, 0
    for place in places:
        table = read_places(folder, [place], job.log_schema)
        events = in_order(job, table if tail is None else pa.concat_tables([tail, table]).combine_chunks())
        del table
        segment_E = segment_codes(job, events, cuts)
        rows, start = _rows(work, events, segment_E, done), len(segment_E)
        last = place == places[-1]
        if not last:
            rows, start = _finished(job, rows, start)
        ready = len([day for day in work.states if last or segment_E.max(initial=0) > day])
        yield Slice(events, segment_E, rows, work.states[saved:ready])
        saved = ready
        if not last:
            keep_E = _tail(job, events, start)
            tail, done = events.table.filter(pa.array(keep_E)), int(np.count_nonzero(keep_E[:start]))
        del events, segment_E, rows  # before the next are read


def _finished(job: Job, rows: Rows, end: int) -> tuple[Rows, int]:
    """Rows that no later event can lengthen, and the place of the first event that is left to the next slice."""
    if job.schema.supervision == "candidates" or len(rows.event_R) == 0:
        return rows, end
    own = rows.lists[f"history.{job.schema.supervised_history}"]
    context = 0 if own.context_R is None else int(own.context_R[-1])
    if int(own.end_R[-1] - own.first_R[-1]) - context == job.settings.supervised_events:
        return rows, end
    return rows.select(slice(None, -1)), int(rows.event_R[-1])


def _tail(job: Job, events: Events, start: int) -> npt.NDArray[np.bool_]:
    """What rows of events from place `start` on need of one user's events, and those events."""
    ended = start == len(events.time_E)
    known = start if ended else int(events.known_E[start])
    bound = int(events.time_E[-1]) + 1 if ended else int(events.time_E[start])
    place_E = np.arange(len(events.time_E))
    return (place_E >= known) | needed_later(job, events, place_E < known, bound)


def _count_users(work: Work, folder: str, place: int) -> tuple[Hashes, Int64]:
    """Ascending hashes of the users of a cell, and the events of each."""
    hashes, counts = np.empty(0, np.uint64), np.empty(0, np.int64)
    for table in read_place(folder, [place], work.job.log_schema, [work.job.user]):
        more, number = np.unique(user_hash(work.job, table), return_counts=True)
        hashes, inverse = np.unique(np.concatenate((hashes, more)), return_inverse=True)
        counts = np.bincount(inverse, np.concatenate((counts, number))).astype(np.int64)
    return hashes, counts


def _group_users(hashes: Hashes, counts: Int64, most: int) -> tuple[Hashes, Int64]:
    """Last hash of each group of neighbours with at most so many events, or of one user with more; and their events."""
    total = np.cumsum(counts)
    ends, events = [], []
    first = 0
    while first < len(hashes):
        before = int(total[first - 1]) if first else 0
        end = max(int(np.searchsorted(total, before + most, side="right")), first + 1)
        ends.append(end - 1)
        events.append(int(total[end - 1]) - before)
        first = end
    return hashes[ends], np.array(events, np.int64)
