"""Ids → rows of the tables that remember nothing, hash and identity: of all of them in one go, however many."""

from __future__ import annotations

import numpy as np

from embeddings.specs import MISSING_ROW, RESERVED_ROWS, UNKNOWN_ROW, TableSpec, seed_of
from pipelines.batch import Int64
from pipelines.hashing import mix
from pipelines.schema import MISSING_ID


class StatelessMap:
    """hash: 2 + hash(id) mod (rows − 2), with a seed of the table's own. identity: id + 2, unknown outside
    0 … rows − 3. A missing id has the missing row.

    specs: of all tables.
    """

    def __init__(self, specs: dict[str, TableSpec]) -> None:
        self._specs = specs
        self._prepare(())

    def rows_of(self, ids: dict[str, Int64]) -> dict[str, Int64]:
        """{table: ids [U]} → {table: rows int64 [U]}."""
        if tuple(ids) != self._tables:
            self._prepare(tuple(ids))
        rows: dict[str, Int64] = {}
        if self._hashed:
            every, counts = _joined([ids[table] for table in self._hashed])
            slots = np.repeat(self._hashed_slots, counts)
            found = (mix(every, np.repeat(self._seeds, counts)) % slots).view(np.int64) + RESERVED_ROWS
            rows |= _parted(every, found, self._hashed, counts)
        if self._same:
            every, counts = _joined([ids[table] for table in self._same])
            known = (every >= 0) & (every < np.repeat(self._same_slots, counts))
            rows |= _parted(every, np.where(known, every + RESERVED_ROWS, UNKNOWN_ROW), self._same, counts)
        return rows

    def _prepare(self, tables: tuple[str, ...]) -> None:
        """What is the same for every batch of these tables."""
        self._tables = tables
        self._hashed = [table for table in tables if self._specs[table].mapping == "hash"]
        self._same = [table for table in tables if self._specs[table].mapping == "identity"]
        self._seeds = np.array([seed_of("hash", table) for table in self._hashed], np.uint64)
        self._hashed_slots = np.array([self._specs[table].rows - RESERVED_ROWS for table in self._hashed], np.uint64)
        self._same_slots = np.array([self._specs[table].rows - RESERVED_ROWS for table in self._same], np.int64)


def _joined(ids: list[Int64]) -> tuple[Int64, list[int]]:
    return np.concatenate(ids), [len(found) for found in ids]


def _parted(every: Int64, rows: Int64, tables: list[str], counts: list[int]) -> dict[str, Int64]:
    """{table: its rows}, views."""
    rows[every == MISSING_ID] = MISSING_ROW
    parts, end = {}, 0
    for table, count in zip(tables, counts, strict=True):
        parts[table] = rows[end : (end := end + count)]
    return parts
