"""Rows of tables as Parquet that needs nothing of ours to be read: row, raw id, vector.

row       int64: of the table
raw_id    int64, null where there is none: rows nobody has yet, reserved rows, every row of a hashed table
reserved  string, null but for rows 0 "missing" and 1 "unknown"
vector    floats; FP16 and BF16 tables as float32, which loses nothing
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pipelines.batch import Int64
from trainer.checkpoint_verbs.saved_tables import RESERVED, RawIds

ELEMENT = pa.field("element", pa.float32(), nullable=False)
ID_MAP = pa.schema([pa.field("id", pa.int64(), nullable=False), pa.field("row", pa.int64(), nullable=False)])


class RowFile:
    """Writes one table's file, a row group a call. A context manager.

    table: its name as a column of its own, and vectors as lists of any length, so that the files of several tables make
    one data set; "" = neither. before: a column `raw_id_before` beside `raw_id`.
    """

    def __init__(self, path: Path, width: int, table: str = "", before: bool = False) -> None:
        self._table, self._width = table, width
        fields = [pa.field("table", pa.dictionary(pa.int32(), pa.string()))] if table else []
        fields += [pa.field("row", pa.int64(), nullable=False), pa.field("raw_id", pa.int64())]
        fields += [pa.field("raw_id_before", pa.int64())] if before else []
        fields += [pa.field("reserved", pa.string())]
        kind = pa.list_(ELEMENT) if table else pa.list_(ELEMENT, width)
        self._schema = pa.schema([*fields, pa.field("vector", kind, nullable=False)])
        # Trained floats do not compress: what they would save is not worth the time.
        codecs = {field.name: "zstd" for field in fields} | {"vector.list.element": "none"}
        dictionaries = [name for name in ("table", "reserved") if name in self._schema.names]
        self._writer = pq.ParquetWriter(path, self._schema, compression=codecs, use_dictionary=dictionaries)

    def __enter__(self) -> RowFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()

    def write(self, rows: Int64, ids: RawIds, vectors: torch.Tensor, before: RawIds | None = None) -> None:
        """rows: [N]. vectors: float32 [N, W]."""
        columns = {"row": pa.array(rows), "raw_id": _ids(ids), "reserved": _reserved(rows)}
        if before is not None:
            columns["raw_id_before"] = _ids(before)
        if self._table:
            codes = pa.array(np.zeros(len(rows), np.int32))
            columns["table"] = pa.DictionaryArray.from_arrays(codes, pa.array([self._table]))
        flat = pa.array(vectors.contiguous().reshape(-1).numpy())
        kind = self._schema.field("vector").type
        if pa.types.is_fixed_size_list(kind):
            columns["vector"] = pa.FixedSizeListArray.from_arrays(flat, type=kind)
        else:
            offsets = pa.array(np.arange(len(rows) + 1, dtype=np.int32) * self._width)
            columns["vector"] = pa.ListArray.from_arrays(offsets, flat, type=kind)
        self._writer.write_table(pa.table([columns[name] for name in self._schema.names], schema=self._schema))


def _ids(ids: RawIds) -> pa.Array:
    return pa.array(ids.ids, mask=~ids.known)


def _reserved(rows: Int64) -> pa.Array:
    names = np.array([*RESERVED.values(), ""], dtype=object)
    return pa.array(names[np.minimum(rows, len(RESERVED))], pa.string(), mask=rows >= len(RESERVED))
