"""`[embeddings]` of a run file."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Frozen(BaseModel):
    """Typed, frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Table(Frozen):
    """`[embeddings.tables.NAME]`; a value of 0 or "" takes the default of `[embeddings]`.

    rows:     of the table, the two reserved rows (missing, unknown) among them. 0 = by default_rows.
    width:    of a row.
    mapping:  "hash": row = stable hash of the id. "vocabulary": ids get rows as first seen, until their bucket is full.
              "identity": id i has row i + 2, others are unknown. Bucketised columns are always identity.
    buckets:  of a vocabulary: fixed at birth, independent of world size.
    sharding: "auto" (the planner's choice), "table_wise", "row_wise" or "column_wise". A vocabulary is row_wise.
    """

    rows: int = Field(default=0, ge=0)
    width: int = Field(default=0, ge=0)
    mapping: Literal["", "hash", "vocabulary", "identity"] = ""
    buckets: int = Field(default=0, ge=0)
    sharding: Literal["", "auto", "table_wise", "row_wise", "column_wise"] = ""


class Embeddings(Frozen):
    """`[embeddings]`.

    width:     of every table that names none. init_scale: rows start uniform in ±init_scale ÷ √width, a function of
               (seed, table, row, column) alone, so that every plan starts alike.
    default_rows, mapping, buckets, sharding: of every table that names none; see `[embeddings.tables.NAME]`.
    optimizer: fused into backward; with column_wise, row-wise Adagrad keeps one state a column shard. lr: constant.
    eps:       Adagrad's.
    tables:    {table: its own settings}; a column's table has the column's name unless the schema says otherwise.
    """

    width: int = Field(default=16, gt=0)
    default_rows: int = Field(default=100_000, gt=2)
    mapping: Literal["hash", "vocabulary"] = "hash"
    buckets: int = Field(default=64, gt=0)
    sharding: Literal["auto", "table_wise", "row_wise", "column_wise"] = "auto"
    optimizer: Literal["rowwise_adagrad", "adagrad", "sgd"] = "rowwise_adagrad"
    lr: float = Field(default=0.05, gt=0)
    eps: float = Field(default=1e-8, gt=0)
    init_scale: float = Field(default=1.0, ge=0)
    tables: dict[str, Table] = {}
