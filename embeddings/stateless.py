"""Ids → rows of the tables that remember nothing, hash and identity: of all of them in one go, however many."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from embeddings.specs import MISSING_ROW, RESERVED_ROWS, UNKNOWN_ROW, TableSpec, seed_of
from pipelines.batch import Int64
from pipelines.hashing import mix
from pipelines.schema import MISSING_ID


class StatelessMap:
    """hash: 2 + hash(id) mod (rows − 2), with a seed of the table's own. identity: id + 2, unknown outside
    0 … rows − 3. A missing id has the missing row.

    specs: of all tables; those of other mappings are passed over.
    """

    def __init__(self, specs: dict[str, TableSpec]) -> None:
        self._slots = {name: spec.rows - RESERVED_ROWS for name, spec in specs.items()}
        self._seeds = {name: seed_of("hash", name) for name, spec in specs.items() if spec.mapping == "hash"}

    def rows_of(self, ids: dict[str, Int64]) -> dict[str, Int64]:
        """{table: ids [U]} → {table: rows int64 [U]}."""
        hashed = {table: found for table, found in ids.items() if table in self._seeds}
        same = {table: found for table, found in ids.items() if table not in self._seeds}
        rows = self._hashed(hashed) | self._identical(same)
        return {table: rows[table] for table in ids}

    def _hashed(self, ids: dict[str, Int64]) -> dict[str, Int64]:
        if not ids:
            return {}
        every, counts = _joined(ids)
        seeds = np.repeat(np.array([self._seeds[table] for table in ids], np.uint64), counts)
        slots = np.repeat(np.array([self._slots[table] for table in ids], np.uint64), counts)
        rows = (mix(every, seeds) % slots).astype(np.int64) + RESERVED_ROWS
        rows[every == MISSING_ID] = MISSING_ROW
        return _parted(rows, ids, counts)

    def _identical(self, ids: dict[str, Int64]) -> dict[str, Int64]:
        if not ids:
            return {}
        every, counts = _joined(ids)
        slots = np.repeat(np.array([self._slots[table] for table in ids]), counts)
        rows = np.where((every >= 0) & (every < slots), every + RESERVED_ROWS, UNKNOWN_ROW)
        rows[every == MISSING_ID] = MISSING_ROW
        return _parted(rows, ids, counts)


def _joined(ids: dict[str, Int64]) -> tuple[Int64, npt.NDArray[np.intp]]:
    return np.concatenate(list(ids.values())), np.array([len(found) for found in ids.values()], np.intp)


def _parted(rows: Int64, ids: dict[str, Int64], counts: npt.NDArray[np.intp]) -> dict[str, Int64]:
    ends = counts.cumsum().tolist()
    return {table: rows[end - len(found) : end] for (table, found), end in zip(ids.items(), ends, strict=True)}
