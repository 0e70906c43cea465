"""`checkpoint diff`: which rows of which tables changed from one checkpoint to another, and which dense parameters.

A row changed when a bit of its vector did, or the id that it belongs to. Tables are gone through block by block.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from embeddings.specs import TableSpec
from trainer.checkpoint.reading import SavedTensors
from trainer.checkpoint.state import CheckpointState, schema_differences
from trainer.checkpoint_verbs.output import file_name, new_folder
from trainer.checkpoint_verbs.row_files import RowFile
from trainer.checkpoint_verbs.saved_tables import RawIds, SavedTable, row_blocks
from trainer.run_dir import write_atomic

DENSE = "dense/"


@dataclass
class TableChange:
    """Of one table. changed: rows. new_ids: of these, rows that belong to another id than before, or to a first one.
    lost_ids: rows that belonged to an id and belong to none. mean_change, largest_change: |Δ| over the values of
    changed rows. note: why the table was not compared, "" where it was."""

    table: str
    rows: int
    changed: int = 0
    new_ids: int = 0
    lost_ids: int = 0
    mean_change: float = 0.0
    largest_change: float = 0.0
    note: str = ""

    @property
    def share(self) -> float:
        """Of its rows."""
        return self.changed / self.rows if self.rows else 0.0


@dataclass(frozen=True)
class DenseChange:
    """L2 norms of a dense parameter before and after, and of the difference. None where it was not there; change is
    None where there is no difference to take: one is missing, or its size is another."""

    parameter: str
    norm_before: float | None
    norm: float | None
    change: float | None


@dataclass(frozen=True)
class Comparison:
    """steps: of A and B. schema: a phrase per difference of the two. dense_same: parameters without a change."""

    steps: tuple[int, int]
    schema: list[str]
    tables: list[TableChange]
    dense: list[DenseChange]
    dense_same: int

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        tables = [asdict(change) | {"share": change.share} for change in self.tables]
        return {
            "step_before": self.steps[0],
            "step": self.steps[1],
            "schema": self.schema,
            "tables": [{key: _finite(value) for key, value in table.items()} for table in tables],
            "dense": [{key: _finite(value) for key, value in asdict(change).items()} for change in self.dense],
            "dense_unchanged": self.dense_same,
        }


@dataclass(frozen=True)
class Side:
    """One of the two checkpoints: its files, its tables as they are resolved, its state."""

    saved: SavedTensors
    specs: dict[str, TableSpec]
    state: CheckpointState


def compare(a: Side, b: Side, out: str | None) -> Comparison:
    """From A to B. out: a new folder for the changed rows as B has them, rows/TABLE.parquet, and summary.json; None =
    write nothing. Raises ConfigError where it is there and not empty.
    """
    if out is None:
        return _compare(a, b, None)
    with new_folder(out) as folder:
        (folder / "rows").mkdir()
        found = _compare(a, b, folder)
        write_atomic(folder / "summary.json", json.dumps(found.to_json(), indent=2, allow_nan=False) + "\n")
    return found


def _compare(a: Side, b: Side, folder: Path | None) -> Comparison:
    tables = []
    for name, spec in b.specs.items():
        before = a.specs.get(name)
        note = _incomparable(before, spec)
        if before is None or note:
            tables.append(TableChange(name, spec.rows, note=note))
        elif folder is None:
            tables.append(_table(a, b, spec, before, None))
        else:
            path = folder / "rows" / f"{file_name(name)}.parquet"
            with RowFile(path, spec.width, table=name, before=True) as file:
                tables.append(_table(a, b, spec, before, file.write))
            if not tables[-1].changed:
                path.unlink()
    gone = [TableChange(name, spec.rows, note="dropped") for name, spec in a.specs.items() if name not in b.specs]
    dense, same = _dense(a.saved, b.saved)
    steps = (a.state.step, b.state.step)
    return Comparison(steps, schema_differences(a.state.data_schema, b.state.data_schema), tables + gone, dense, same)


def _incomparable(before: TableSpec | None, spec: TableSpec) -> str:
    """Why rows of the one are not those of the other."""
    if before is None:
        return "added"
    if (before.rows, before.width) != (spec.rows, spec.width):
        return f"was {before.rows:,} × {before.width}, is {spec.rows:,} × {spec.width}"
    if before.mapping != spec.mapping and not (before.is_bucketed and spec.is_bucketed):
        return f"mapping was {before.mapping}, is {spec.mapping}"
    if before.buckets != spec.buckets:
        return f"had {before.buckets} buckets, has {spec.buckets}"
    return ""


def _table(a: Side, b: Side, spec: TableSpec, before: TableSpec, write: Callable[..., None] | None) -> TableChange:
    change = TableChange(spec.name, spec.rows)
    total = 0.0
    table_a, table_b = SavedTable(a.saved, before), SavedTable(b.saved, spec)
    for block in row_blocks(spec.rows, spec.width):
        old, new = table_a.vectors(block), table_b.vectors(block)
        old_ids, new_ids = table_a.raw_ids(block), table_b.raw_ids(block)
        other = (old_ids.known != new_ids.known) | (new_ids.known & (old_ids.ids != new_ids.ids))
        changed = np.flatnonzero((old.view(torch.int32) != new.view(torch.int32)).any(1).numpy() | other)
        if not len(changed):
            continue
        at = torch.from_numpy(changed)
        vector_CW = new.index_select(0, at)
        distance = (vector_CW - old.index_select(0, at)).abs()
        change.changed += len(changed)
        change.new_ids += int((other & new_ids.known).sum())
        change.lost_ids += int((old_ids.known & ~new_ids.known).sum())
        total += float(distance.sum(dtype=torch.float64))
        change.largest_change = max(change.largest_change, float(distance.max()))
        if write is not None:
            write(changed + block.start, _taken(new_ids, changed), vector_CW, _taken(old_ids, changed))
    change.mean_change = total / max(1, change.changed * spec.width)
    return change


def _taken(ids: RawIds, at: np.ndarray) -> RawIds:
    return RawIds(ids.ids[at], ids.known[at])


def _dense(a: SavedTensors, b: SavedTensors) -> tuple[list[DenseChange], int]:
    names = sorted({name for saved in (a, b) for name in saved.tensors if name.startswith(DENSE)})
    changes, same = [], 0
    for name in names:
        old = a.read(name).double() if name in a.tensors else None
        new = b.read(name).double() if name in b.tensors else None
        if old is not None and new is not None and torch.equal(old, new):
            same += 1
            continue
        comparable = old is not None and new is not None and old.shape == new.shape
        distance = float((new - old).norm()) if comparable and old is not None and new is not None else None
        norms = [None if tensor is None else float(tensor.norm()) for tensor in (old, new)]
        changes.append(DenseChange(name.removeprefix(DENSE), norms[0], norms[1], distance))
    return changes, same


def _finite(value: Any) -> Any:
    """JSON has no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
