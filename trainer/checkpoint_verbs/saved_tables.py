"""The tables of a checkpoint, some rows at a time, and the raw ids of these rows.

Sizes: N rows of a block · W width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from embeddings.specs import MISSING_ROW, RESERVED_ROWS, UNKNOWN_ROW, TableSpec, table_specs
from pipelines.batch import Int64
from pipelines.schema import MISSING_ID
from trainer.checkpoint.reading import SavedTensors
from trainer.config import Config
from trainer.errors import CheckpointError

BLOCK_BYTES = 1 << 23  # of float32 rows, read and written at a time
RESERVED = {MISSING_ROW: "missing", UNKNOWN_ROW: "unknown"}


@dataclass(frozen=True)
class RawIds:
    """ids: int64 [N]. known: bool [N]: whether a row has an id: rows nobody has yet, reserved ones and those of a hash
    have none."""

    ids: Int64
    known: npt.NDArray[np.bool_]


def checked_specs(saved: SavedTensors, config: Config) -> dict[str, TableSpec]:
    """The tables of the run file, which are those of the checkpoint. Raises CheckpointError, a line a table that is
    missing or of another size."""
    specs = table_specs(config.schema, config.embeddings)
    problems = []
    for name, spec in specs.items():
        record = saved.tensors.get(f"tables/{name}/weight")
        found = None if record is None else tuple(record.size)
        if found != (spec.rows, spec.width):
            held = "is not in it" if found is None else f"has {found[0]:,} × {found[1]} in it"
            problems.append(
                f"checkpoint {saved.path}: table {name!r} {held}, the run file says {spec.rows:,} × {spec.width} → "
                "they must agree → use the run's own config.toml"
            )
        if spec.is_bucketed and not problems:
            problems += _map_problems(saved, spec)
    if problems:
        raise CheckpointError(problems)
    return specs


def _map_problems(saved: SavedTensors, spec: TableSpec) -> list[str]:
    record = saved.tensors.get(f"id_maps/{spec.name}/ids")
    shape = [spec.buckets, spec.rows_per_bucket]
    if record is not None and record.size == shape:
        return []
    held = "no id map" if record is None else f"an id map of {record.size[0]} buckets"
    return [
        f"checkpoint {saved.path}: table {spec.name!r} has {held} in it, the run file says {spec.buckets} buckets → "
        "they must agree → use the run's own config.toml"
    ]


def chosen(specs: dict[str, TableSpec], names: str | None) -> dict[str, TableSpec]:
    """The tables named, "a,b"; None = all. Raises CheckpointError for one that is not there."""
    if names is None:
        return specs
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in specs]
    if unknown or not wanted:
        raise CheckpointError(
            f"--tables {names} → the tables are {', '.join(specs)}: {', '.join(unknown) or 'none named'} is not one "
            "→ name some of them"
        )
    return {name: spec for name, spec in specs.items() if name in wanted}


def row_blocks(rows: int, width: int) -> Iterator[range]:
    """Rows 0 … rows − 1, as many at a time as make BLOCK_BYTES of float32."""
    step = max(1, BLOCK_BYTES // (4 * width))
    for first in range(0, rows, step):
        yield range(first, min(rows, first + step))


class SavedTable:
    """Reads one table of a checkpoint, block by block in order."""

    def __init__(self, saved: SavedTensors, spec: TableSpec) -> None:
        self._saved = saved
        self.spec = spec
        self._bucket = -1, np.empty(0, np.int64)  # the one read last

    def vectors(self, block: range) -> torch.Tensor:
        """float32 [N, W]; FP16 and BF16 are widened, which loses nothing."""
        box = (block.start, 0), (len(block), self.spec.width)
        return self._saved.read(f"tables/{self.spec.name}/weight", *box).float()

    def raw_ids(self, block: range) -> RawIds:
        """As far as the table's mapping knows them."""
        rows = np.arange(block.start, block.stop)
        free = rows >= RESERVED_ROWS
        if self.spec.mapping == "identity":
            return RawIds(rows - RESERVED_ROWS, free)
        if not self.spec.is_bucketed:
            return RawIds(np.zeros(len(rows), np.int64), np.zeros(len(rows), np.bool_))
        ids = self._mapped(block)
        return RawIds(ids, free & (ids != MISSING_ID))

    def _mapped(self, block: range) -> Int64:
        """int64 [N]: the ids that the map holds, MISSING_ID where none. Buckets are read whole, a large one once."""
        size = self.spec.rows_per_bucket
        first, last = block.start // size, -(-block.stop // size)
        if last - first == 1 and self._bucket[0] == first:
            ids = self._bucket[1]
        else:
            box = (first, 0), (last - first, size)
            ids = self._saved.read(f"id_maps/{self.spec.name}/ids", *box).reshape(-1).numpy()
            if last - first == 1:
                self._bucket = first, ids
        return ids[block.start - first * size : block.stop - first * size]
