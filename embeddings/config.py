"""`[embeddings]` of a run file."""

from __future__ import annotations

import difflib
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

MappingName = Literal["", "hash", "vocabulary", "managed", "identity"]
ShardingName = Literal["", "auto", "table_wise", "row_wise", "column_wise"]
KernelName = Literal["", "auto", "fused", "fused_uvm", "fused_uvm_caching"]
DTypeName = Literal["", "fp32", "fp16", "bf16"]
OptimizerName = Literal["", "sgd", "adagrad", "rowwise_adagrad", "adam", "rowwise_adam"]
InitName = Literal["", "uniform", "normal", "zeros"]
Eviction = Literal["", "lru", "lfu", "ttl"]
Codec = Literal["fp32", "fp16", "bf16", "int8"]

SHARDING_TYPES = ("table_wise", "row_wise", "column_wise")
# Types of TorchRec's that unpooled tables do not have, and the one of ours that does most nearly the same.
NEAREST = {
    "data_parallel": "table_wise",
    "table_row_wise": "row_wise",
    "table_column_wise": "column_wise",
    "grid_shard": "column_wise",
    "grid": "column_wise",
    "dp": "table_wise",
    "tw": "table_wise",
    "rw": "row_wise",
    "cw": "column_wise",
    "twrw": "row_wise",
    "twcw": "column_wise",
}


def nearest_sharding(asked: str) -> str:
    """The rest of a line about a sharding type that there is not: rule → remedy."""
    words = asked.lower().replace("-", "_").replace(" ", "_")
    found = NEAREST.get(words) or next(iter(difflib.get_close_matches(words, SHARDING_TYPES, n=1)), "auto")
    return (
        "unpooled tables are table_wise, column_wise or row_wise, in embeddings.replicas groups of ranks if need be "
        f"→ the nearest is '{found}'"
    )


class Frozen(BaseModel):
    """Typed, frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Table(Frozen):
    """`[embeddings.tables.NAME]`; a value of 0, "" or −1 takes the default of `[embeddings]`.

    rows:     of the table, the two reserved rows (missing, unknown) among them. 0 = by default_rows.
    width:    of a row.
    mapping:  "hash": row = stable hash of the id. "vocabulary": ids get rows as first seen, until their bucket is full.
              "managed": as vocabulary, but an id is admitted after admit_after sightings, and a full bucket evicts.
              "identity": id i has row i + 2, others are unknown. Bucketised columns are always identity.
    buckets:  of a vocabulary or managed table: fixed at birth, independent of world size.
    admit_after: of a managed table: sightings (occurrences in the data) that give an id a row of its own.
    evict:    of a managed table, when a bucket is full: "lru": the row unseen for longest; "lfu": the least seen;
              "ttl": rows unseen for ttl_days of event time, and none other. See docs/ids.md.
    ttl_days: of "ttl".
    sharding: "auto" (table_wise or row_wise, chosen by bytes held and moved), "table_wise", "row_wise" or
              "column_wise" (equal shards, on ranks of their own). A vocabulary is row_wise.
    ranks:    that a table_wise or column_wise table may lie on, counted in its group of ranks; () = any.
    kernel:   "auto" and "fused": rows in the device's memory. On CUDA also "fused_uvm" (rows in the host's memory) and
              "fused_uvm_caching" (and a fifth of them cached on the device).
    dtype:    of its rows: "fp32", "fp16", or on CUDA "bf16".
    optimizer, lr, eps, weight_decay, init, init_scale: as in `[embeddings]`, of this table.
    frozen:   weights and optimizer state stay bit for bit as they are.
    """

    rows: int = Field(default=0, ge=0)
    width: int = Field(default=0, ge=0)
    mapping: MappingName = ""
    buckets: int = Field(default=0, ge=0)
    admit_after: int = Field(default=0, ge=0)
    evict: Eviction = ""
    ttl_days: float = Field(default=0.0, ge=0)
    sharding: ShardingName = ""
    ranks: tuple[int, ...] = ()
    kernel: KernelName = ""
    dtype: DTypeName = ""
    optimizer: OptimizerName = ""
    lr: float = Field(default=0.0, ge=0)
    eps: float = Field(default=0.0, ge=0)
    weight_decay: float = Field(default=-1.0, ge=-1)
    init: InitName = ""
    init_scale: float = Field(default=-1.0, ge=-1)
    frozen: bool = False


class Embeddings(Frozen):
    """`[embeddings]`.

    width:     of every table that names none.
    default_rows, mapping, buckets, admit_after, evict, ttl_days, sharding, kernel, dtype: of every table that names
               none; see `[embeddings.tables.NAME]`.
    optimizer: fused into backward: "sgd", "adagrad", "rowwise_adagrad" (one state a row; with column_wise, one a
               column shard), and on CUDA "adam" and "rowwise_adam". lr: constant.
    eps:       Adagrad's and Adam's.
    weight_decay: of the rows a step touches and of no others. With rowwise_adagrad L2: it is added to the gradient,
               and so to the state; with adam and rowwise_adam apart from the gradient; with others it is refused.
    init_scale: of init; 0 makes zeros of any.
    init:      "uniform" in ±init_scale ÷ √width, "normal" with that standard deviation, or "zeros": a function of
               (seed, table, row, column) alone, rounded to dtype, so that every plan starts alike.
    forward_codec, backward_codec: of rows on their way to the ranks that asked, and of their gradients back: "fp32",
               "fp16", "bf16" (on CUDA; on CPU fp16 travels instead), "int8" (with a scale for each row).
    replicas:  groups of ranks that each hold all tables (2D): 1 = one copy over all ranks.
    replica_sync_steps: with replicas > 1, rows and optimizer states are averaged over the groups every so many steps;
               checkpoints and a stop wait for such a step.
    plan:      a plan.json to shard by, of a run or the plan verb; "" = plan anew.
    tables:    {table: its own settings}; a column's table has the column's name unless the schema says otherwise.
    """

    width: int = Field(default=16, gt=0)
    default_rows: int = Field(default=100_000, gt=2)
    mapping: Literal["hash", "vocabulary", "managed"] = "hash"
    buckets: int = Field(default=64, gt=0)
    admit_after: int = Field(default=1, gt=0)
    evict: Literal["lru", "lfu", "ttl"] = "lru"
    ttl_days: float = Field(default=30.0, gt=0)
    sharding: Literal["auto", "table_wise", "row_wise", "column_wise"] = "auto"
    kernel: Literal["auto", "fused", "fused_uvm", "fused_uvm_caching"] = "auto"
    dtype: Literal["fp32", "fp16", "bf16"] = "fp32"
    optimizer: Literal["sgd", "adagrad", "rowwise_adagrad", "adam", "rowwise_adam"] = "rowwise_adagrad"
    lr: float = Field(default=0.05, gt=0)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    init: Literal["uniform", "normal", "zeros"] = "uniform"
    init_scale: float = Field(default=1.0, ge=0)
    forward_codec: Codec = "fp32"
    backward_codec: Codec = "fp32"
    replicas: int = Field(default=1, gt=0)
    replica_sync_steps: int = Field(default=1, gt=0)
    plan: str = ""
    tables: dict[str, Table] = {}
