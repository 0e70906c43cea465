"""Checkpoints of 0.1.0: tables went by TorchRec's names, row-wise optimizer states were one flat tensor a table."""

from __future__ import annotations

import re

from trainer.checkpoint.manifest import Chunk, TensorIndex, TensorRecord

_TABLE = re.compile(r"tables\.collections\.\w+\.embeddings\.(?P<table>.+)_table\.weight")


def renamed(index: TensorIndex) -> TensorIndex:
    """The same chunks under the names of format 2 (see model_state.py)."""
    rows = {
        _table(name): record.size[0] for name, record in index.tensors.items() if name.startswith("weights/tables.")
    }
    return TensorIndex(
        format_version=index.format_version,
        tensors=dict(_renamed(name, record, rows) for name, record in index.tensors.items()),
    )


def _renamed(name: str, record: TensorRecord, rows: dict[str, int]) -> tuple[str, TensorRecord]:
    kind, _, rest = name.partition("/")
    if name.startswith("weights/tables."):
        return f"tables/{_table(name)}/weight", record
    if kind == "weights":
        return f"dense/{rest}", record
    if kind == "tables_optimizer":
        table, key = _table(name), name.rsplit("/", 1)[-1]
        return f"tables/{table}/{key}", record if len(record.size) > 1 else _by_column_shard(record, rows[table])
    if kind == "id_maps":
        table, _, key = rest.rpartition(".")
        return f"id_maps/{table}/{key}", record
    return name, record


def _by_column_shard(record: TensorRecord, rows: int) -> TensorRecord:
    """Flat [column shards · rows] → [rows, column shards]; each chunk was of one shard."""
    chunks = [
        Chunk(
            offsets=[chunk.offsets[0] % rows, chunk.offsets[0] // rows],
            sizes=[chunk.sizes[0], 1],
            file=chunk.file,
            key=chunk.key,
        )
        for chunk in record.chunks
    ]
    return TensorRecord(dtype=record.dtype, size=[rows, record.size[0] // rows], chunks=chunks)


def _table(name: str) -> str:
    found = _TABLE.search(name)
    return found["table"].replace("%2E", ".").replace("%25", "%") if found else ""
