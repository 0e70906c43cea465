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

BLOCK_BYTES = 1 << 24  # of float32 rows, read and written at a time
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
    if problems:
        raise CheckpointError(problems)
    return specs


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


def vectors(saved: SavedTensors, spec: TableSpec, block: range) -> torch.Tensor:
    """float32 [N, W] of rows of a table; FP16 and BF16 are widened, which loses nothing."""
    return saved.read(f"tables/{spec.name}/weight", (block.start, 0), (len(block), spec.width)).float()


def raw_ids(saved: SavedTensors, spec: TableSpec, block: range) -> RawIds:
    """Raw ids of rows of a table, as far as its mapping knows them."""
    rows = np.arange(block.start, block.stop)
    free = rows >= RESERVED_ROWS
    if spec.mapping == "identity":
        return RawIds(rows - RESERVED_ROWS, free)
    if not spec.is_bucketed:
        return RawIds(np.zeros(len(rows), np.int64), np.zeros(len(rows), np.bool_))
    ids = mapped_ids(saved, spec.name, block)
    return RawIds(ids, free & (ids != MISSING_ID))


def mapped_ids(saved: SavedTensors, table: str, block: range) -> Int64:
    """int64 [N]: what a table's id map holds for these rows, MISSING_ID where nothing. A bucket may be larger than a
    block: no more is read than asked for."""
    name = f"id_maps/{table}/ids"
    size = saved.tensors[name].size[1]
    parts = []
    at = block.start
    while at < block.stop:
        bucket, slot = divmod(at, size)
        whole = (block.stop - at) // size if slot == 0 else 0
        sizes = (whole, size) if whole else (1, min(size - slot, block.stop - at))
        parts.append(saved.read(name, (bucket, slot), sizes).reshape(-1).numpy())
        at += len(parts[-1])
    return np.concatenate(parts) if parts else np.empty(0, np.int64)
