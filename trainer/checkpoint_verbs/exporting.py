"""`checkpoint unshard`: a model as files that need nothing of ours to be read. docs/serving.md says how to score from
them.

    README.md             what is what
    schema.json           columns, tables and how ids become rows of them, tasks, what the ranker's input is made of
    borders.json          {bucketised column: its boundaries}
    model.json            the tower's config and input
    tower.safetensors     its parameters, by their names in the ranker
    tables/TABLE.parquet  row, raw_id, reserved, vector: every row, in order
    id_maps/TABLE.parquet id, row: of tables whose ids were given rows
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file

from embeddings.specs import TableSpec
from trainer.checkpoint.folder import name_of
from trainer.checkpoint.reading import SavedTensors
from trainer.checkpoint.state import CheckpointState
from trainer.checkpoint_verbs.export_schema import borders, model_json, readme, schema_json
from trainer.checkpoint_verbs.output import file_name, new_folder
from trainer.checkpoint_verbs.row_files import ID_MAP, RowFile
from trainer.checkpoint_verbs.saved_tables import SavedTable, row_blocks
from trainer.checkpoint_verbs.source import check_files
from trainer.config import Config
from trainer.errors import CheckpointError

TOWER = "dense/scorer.ranker."


@dataclass(frozen=True)
class Exported:
    """tables: {table: rows}. ids: {table: ids in its map}. parameters: values of the tower. bytes: of all files."""

    tables: dict[str, int]
    ids: dict[str, int]
    parameters: int
    bytes: int


def export(
    saved: SavedTensors, state: CheckpointState, config: Config, specs: dict[str, TableSpec], only: list[str], out: str
) -> Exported:
    """Writes `out`, a new folder. specs: of all tables; only: those whose rows are written.

    Raises CheckpointError where a file is not what was committed, ConfigError where `out` is there and not empty.
    """
    check_files(saved)
    with new_folder(out) as folder:
        (folder / "tables").mkdir()
        ids = {}
        for name in only:
            spec = specs[name]
            _write_rows(saved, spec, folder / "tables" / f"{file_name(name)}.parquet")
            if spec.is_bucketed:
                (folder / "id_maps").mkdir(exist_ok=True)
                ids[name] = _write_ids(saved, spec, folder / "id_maps" / f"{file_name(name)}.parquet")
        tower = _tower(saved)
        save_file(tower, folder / "tower.safetensors")
        exported = {name: specs[name] for name in only}
        _write_json(folder / "schema.json", schema_json(state, config, specs, exported, name_of(saved.path)))
        _write_json(folder / "borders.json", borders(config.schema))
        _write_json(folder / "model.json", model_json(config, specs))
        (folder / "README.md").write_text(readme(state, specs, exported, name_of(saved.path)), encoding="utf-8")
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Exported({n: specs[n].rows for n in only}, ids, sum(tensor.numel() for tensor in tower.values()), size)


def _write_rows(saved: SavedTensors, spec: TableSpec, path: Path) -> None:
    table = SavedTable(saved, spec)
    with RowFile(path, spec.width) as file:
        for block in row_blocks(spec.rows, spec.width):
            file.write(np.arange(block.start, block.stop), table.raw_ids(block), table.vectors(block))


def _write_ids(saved: SavedTensors, spec: TableSpec, path: Path) -> int:
    table, count = SavedTable(saved, spec), 0
    with pq.ParquetWriter(path, ID_MAP, compression="zstd", use_dictionary=False) as file:
        for block in row_blocks(spec.rows, spec.width):
            ids = table.raw_ids(block)
            rows = np.flatnonzero(ids.known)
            count += len(rows)
            if len(rows):
                file.write_table(pa.table([pa.array(ids.ids[rows]), pa.array(rows + block.start)], schema=ID_MAP))
    return count


def _tower(saved: SavedTensors) -> dict[str, torch.Tensor]:
    """The ranker's parameters and buffers."""
    dense = [name for name in saved.tensors if name.startswith("dense/")]
    strangers = [name for name in dense if not name.startswith(TOWER)]
    if strangers:
        raise CheckpointError(
            f"checkpoint {saved.path}: {strangers[0]} is neither of a table nor of the tower → an export holds both "
            "and nothing else → use the tokenformer that wrote it"
        )
    return {name.removeprefix(TOWER): saved.read(name).contiguous() for name in dense}


def _write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(f"{text}\n", encoding="utf-8")
