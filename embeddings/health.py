"""Health of tables: what a global batch shows of each, as counts that add up over ranks, and the figures made of them.

T tables, in the order of the specs. A global batch is the same for any number of ranks, and so are its figures: each
rank counts the ids that fall to it once all ranks' lists are put together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from embeddings.exchange import Exchange
from embeddings.specs import MISSING_ROW, UNKNOWN_ROW, TableSpec
from pipelines.batch import Array, Float64, Int64, TableIds


@dataclass(frozen=True)
class TableFigures:
    """One table's. None where it is not defined. Missing (null) ids count nowhere.

    mapping: of the table. evicts: whether a full bucket always makes room.
    unique_share: unique ids ÷ occurrences of ids in a global batch. hottest_share: occurrences of the most frequent id
    ÷ occurrences. unknown_rate: occurrences of ids that have the unknown row ÷ occurrences. collision_rate: unique ids
    of a batch that share their row with another one of it ÷ unique ids (hash tables). admissions, evictions: ids that
    were given a row, and that lost theirs, since the last sample (tables with buckets). fill: rows handed out ÷ rows
    (the same). row_norm: mean L2 norm of the rows looked up, each occurrence counted; row_norm_max: the largest.
    never_touched_share: of rows that no gradient has reached, on a sample (optimizers with a state).
    """

    mapping: str = "hash"
    evicts: bool = False
    unique_share: float | None = None
    hottest_share: float | None = None
    unknown_rate: float | None = None
    collision_rate: float | None = None
    admissions: int | None = None
    evictions: int | None = None
    fill: float | None = None
    row_norm: float | None = None
    row_norm_max: float | None = None
    never_touched_share: float | None = None


@dataclass(frozen=True)
class BatchCounts:
    """This rank's part of a global batch; sums over ranks are the batch's, and the maximum of `hottest`.

    All int64 [T]. occurrences: of ids. unknown: of these, with the unknown row. ids: unique ones. colliding: of these,
    that share their row (hash tables). hottest: occurrences of the most frequent one.
    """

    occurrences: Int64
    unknown: Int64
    ids: Int64
    colliding: Int64
    hottest: Int64


@dataclass(frozen=True)
class FlatIds:
    """The unique ids of all tables end to end, int64 [ΣU]. table: its index. counts: occurrences, 0 of missing ids."""

    table: Int64
    counts: Int64
    row: Int64
    ids: Int64


class BatchCounter:
    """Counts batches. Collective over `exchange`, all tables in one round."""

    def __init__(self, specs: Mapping[str, TableSpec], exchange: Exchange) -> None:
        self._count_T, self._exchange = len(specs), exchange
        rows_T = np.array([spec.rows for spec in specs.values()], np.int64)
        self._first_T = np.cumsum(rows_T) - rows_T  # a table's first row among the rows of all
        self._is_hash_T = np.array([spec.mapping == "hash" for spec in specs.values()])

    def count(self, ids: FlatIds) -> BatchCounts:
        """ids: this rank's, of all tables of the specs in their order."""
        return self._count(
            *(values[np.flatnonzero(ids.counts)] for values in (ids.table, ids.counts, ids.row, ids.ids))
        )

    def _count(self, table: Int64, counts: Int64, row: Int64, ids: Int64) -> BatchCounts:
        count_T = self._count_T
        occurrences = _sums(table, counts, count_T)
        is_unknown = row == UNKNOWN_ROW
        unknown = _sums(table[is_unknown], counts[is_unknown], count_T)
        place = self._first_T[table] + row
        if self._exchange.world_size > 1:
            place, counts = self._put_together(place, ids, counts, is_unknown)
            table = np.searchsorted(self._first_T, place, side="right") - 1
        return BatchCounts(
            occurrences,
            unknown,
            ids=np.bincount(table, minlength=count_T),
            colliding=self._colliding(table, place),
            hottest=largest(table, counts, count_T).astype(np.int64),
        )

    def _put_together(self, place: Int64, ids: Int64, counts: Int64, is_unknown: Array) -> tuple[Int64, Int64]:
        """(place, occurrences) of each id that falls to this rank, over all ranks, by place. Ids that share a row meet
        at one rank; those without a row of their own are spread by themselves."""
        world_size = self._exchange.world_size
        owner = np.where(is_unknown, ids, place).view(np.uint64) % np.uint64(world_size)
        order = np.argsort(owner.astype(np.uint16), kind="stable")
        borders = np.cumsum(np.bincount(owner.astype(np.int64), minlength=world_size))[:-1]
        lists = [np.split(values[order], borders) for values in (place, ids, counts)]
        received = self._exchange.lists([list(parts) for parts in zip(*lists, strict=True)])
        place, ids, counts = (np.concatenate(parts) for parts in zip(*received, strict=True))
        order = np.lexsort((ids, place))
        place, ids, counts = place[order], ids[order], counts[order]
        is_first = np.ones(len(ids), bool)
        is_first[1:] = (ids[1:] != ids[:-1]) | (place[1:] != place[:-1])
        first = np.flatnonzero(is_first)
        return place[first], np.add.reduceat(counts, first) if len(first) else counts

    def _colliding(self, table: Int64, place: Int64) -> Int64:
        """Places are in the order of tables, which sorting them leaves alone."""
        is_hash = self._is_hash_T[table]
        table, place = table[is_hash], np.sort(place[is_hash])
        shares = np.zeros(len(place), bool)
        shares[1:] = place[1:] == place[:-1]
        shares[:-1] |= shares[1:]
        return np.bincount(table[shares], minlength=self._count_T)


def flat(names: Iterable[str], tables: Mapping[str, TableIds], rows: Mapping[str, Int64]) -> FlatIds:
    """tables: a rank's ids; rows {table: int64 [U]}: what they were mapped to."""
    found = [tables[name] for name in names]
    row = np.concatenate([rows[name] for name in names])
    counts = np.concatenate([table.counts for table in found])
    return FlatIds(
        table=np.repeat(np.arange(len(found)), [len(table.ids) for table in found]),
        counts=np.where(row == MISSING_ROW, 0, counts),
        row=row,
        ids=np.concatenate([table.ids for table in found]),
    )


def largest(table: Int64, values: Array, count_T: int) -> Float64:
    """The largest value (none negative) of each table, 0 where there is none. table: ascending."""
    found = np.zeros(count_T)
    first = np.flatnonzero(np.diff(table, prepend=-1))
    if len(first):
        found[table[first]] = np.maximum.reduceat(values, first)
    return found


def _sums(table: Int64, counts: Int64, count_T: int) -> Int64:
    return np.bincount(table, weights=counts, minlength=count_T).astype(np.int64)


def figures(specs: Mapping[str, TableSpec], total: Mapping[str, Any]) -> dict[str, TableFigures]:
    """{table: its figures} of totals over ranks and sampled steps, arrays [T].

    total: what BatchCounts has; "norms": Σ occurrences · norm, "norm_max"; "used": rows handed out, "admissions" and
    "evictions"; "sampled" and "untouched": rows of the sample, and of these those that no gradient has reached.
    """
    found = {}
    columns = {key: values.tolist() for key, values in total.items()}
    for t, (name, spec) in enumerate(specs.items()):
        of = {key: float(values[t]) for key, values in columns.items()}
        any_ids = of["occurrences"] > 0
        found[name] = TableFigures(
            mapping=spec.mapping,
            evicts=spec.mapping == "managed" and spec.evict != "ttl",
            unique_share=_share(of["ids"], of["occurrences"]),
            hottest_share=_share(of["hottest"], of["occurrences"]),
            unknown_rate=_share(of["unknown"], of["occurrences"]),
            collision_rate=_share(of["colliding"], of["ids"]) if spec.mapping == "hash" else None,
            admissions=int(of["admissions"]) if spec.is_bucketed else None,
            evictions=int(of["evictions"]) if spec.is_bucketed else None,
            fill=of["used"] / spec.rows if spec.is_bucketed else None,
            row_norm=_share(of["norms"], of["occurrences"]),
            row_norm_max=of["norm_max"] if any_ids else None,
            never_touched_share=_share(of["untouched"], of["sampled"]),
        )
    return found


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None
