"""The tables a run has: the schema's columns and `[embeddings]`, resolved once, all problems at once.

Every table's first two rows are reserved: row 0 is the missing id's, row 1 the unknown ids'.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from embeddings.config import Embeddings, Table
from embeddings.errors import PlanError
from pipelines.schema import Schema

if TYPE_CHECKING:
    import torch

Mapping = Literal["hash", "vocabulary", "managed", "identity"]
Sharding = Literal["auto", "table_wise", "row_wise", "column_wise"]
Kernel = Literal["auto", "fused", "fused_uvm", "fused_uvm_caching"]
DType = Literal["fp32", "fp16", "bf16"]
Optimizer = Literal["sgd", "adagrad", "rowwise_adagrad", "adam", "rowwise_adam"]
Init = Literal["uniform", "normal", "zeros"]
Evict = Literal["lru", "lfu", "ttl"]

TORCH_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
DECAYING = ("rowwise_adagrad", "adam", "rowwise_adam")  # optimizers that have weight decay
BUCKETED = ("vocabulary", "managed")  # mappings whose rows belong to buckets

MISSING_ROW = 0
UNKNOWN_ROW = 1
RESERVED_ROWS = 2


@dataclass(frozen=True)
class TableSpec:
    """One embedding table: `dtype` [rows, width].

    rows include the two reserved ones. buckets: of a vocabulary or managed table, which hand out rows / buckets rows
    each (0 for other mappings). init_scale: see `[embeddings]`. admit_after, evict, ttl_days: of a managed table.
    The rest as in `[embeddings.tables.NAME]`, resolved.
    """

    name: str
    rows: int
    width: int
    mapping: Mapping
    buckets: int
    sharding: Sharding
    init_scale: float = 1.0
    init: Init = "uniform"
    dtype: DType = "fp32"
    optimizer: Optimizer = "rowwise_adagrad"
    lr: float = 0.05
    eps: float = 1e-8
    weight_decay: float = 0.0
    frozen: bool = False
    kernel: Kernel = "auto"
    ranks: tuple[int, ...] = ()
    admit_after: int = 1
    evict: Evict = "lru"
    ttl_days: float = 30.0

    @property
    def torch_dtype(self) -> torch.dtype:
        import torch  # noqa: PLC0415 - a run file is loaded, and its tables checked, without it

        dtype: torch.dtype = getattr(torch, TORCH_DTYPES[self.dtype])
        return dtype

    @property
    def is_bucketed(self) -> bool:
        """Whether ids are handed rows by buckets, which live where their rows are."""
        return self.mapping in BUCKETED

    @property
    def rows_per_bucket(self) -> int:
        return self.rows // self.buckets

    def buckets_of_rank(self, rank: int, world_size: int) -> range:
        """Buckets whose rows lie on a rank: blocks of ⌈buckets / world_size⌉, so the last ranks may have fewer or
        none.
        """
        block = -(-self.buckets // world_size)
        return range(min(rank * block, self.buckets), min((rank + 1) * block, self.buckets))

    def split_width(self, world_size: int) -> int:
        """Columns of a column-wise shard: a multiple of 4 (FBGEMM's) that divides the width, one shard a rank if that
        works out, else the fewest shards that do; the width itself on one rank.
        """
        parts = [count for count in range(2, self.width // 4 + 1) if self.width % (4 * count) == 0]
        fitting = [count for count in parts if count <= world_size]
        count = 1 if world_size == 1 else max(fitting, default=min(parts, default=1))
        return self.width // count


def seed_of(purpose: str, table: str) -> int:
    """A stable 63-bit seed of a table, another one for every purpose."""
    digest = hashlib.blake2b(f"{purpose}:{table}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def table_specs(schema: Schema, config: Embeddings) -> dict[str, TableSpec]:
    """{table: its resolved spec}, in the order of the schema's columns. Raises PlanError with every problem found."""
    used = schema.table_columns()
    problems = [
        f"[embeddings.tables.{name}] is set, but no id, ids or bucket column uses it → tables in use: "
        f"{', '.join(used) or 'none'} → rename or remove it"
        for name in config.tables
        if name not in used
    ]
    specs = {}
    for name, columns in used.items():
        spec, found = _resolve(name, columns, schema, config)
        specs[name] = spec
        problems += found
    problems += _unused_defaults(specs, config)
    if problems:
        raise PlanError(problems)
    return specs


def _resolve(name: str, columns: list[str], schema: Schema, config: Embeddings) -> tuple[TableSpec, list[str]]:
    table = config.tables.get(name, Table())
    bucketised_rows, problems = _bucketised_rows(name, columns, table, schema)
    mapping: Mapping = "identity" if bucketised_rows else table.mapping or config.mapping
    rows = bucketised_rows or table.rows or config.default_rows
    width = table.width or config.width
    sharding: Sharding = table.sharding or config.sharding
    buckets = 0
    if rows <= RESERVED_ROWS:
        problems.append(f"table {name!r}: rows = {rows} → rows 0 and 1 are the missing and unknown ids' → give it more")
    if width % 4:
        problems.append(
            f"table {name!r}: width = {width} → FBGEMM wants a multiple of 4 → set width = {width + 4 - width % 4}"
        )
    if mapping in BUCKETED:
        buckets = table.buckets or config.buckets
        rows = -(-rows // buckets) * buckets
        problems += _vocabulary_problems(name, rows, buckets, table)
        if config.replicas > 1:
            problems.append(
                f"table {name!r}: mapping = {mapping!r} with embeddings.replicas = {config.replicas} → a bucket hands "
                "out rows where they are, and every group has rows of its own → mapping = 'hash', or replicas = 1"
            )
        sharding = "row_wise"
    elif table.buckets:
        problems.append(
            f"table {name!r}: buckets = {table.buckets} but mapping = {mapping!r} → only 'vocabulary' and 'managed' "
            "have buckets → remove it"
        )
    if table.ranks and sharding == "row_wise":
        problems.append(
            f"table {name!r}: ranks = {list(table.ranks)} and row_wise → a row_wise table lies on all ranks → remove "
            "ranks, or table_wise or column_wise"
        )
    if sharding == "column_wise" and width < 8:
        problems.append(
            f"table {name!r}: column_wise at width {width} → its shards are 4 columns or more → width 8, or table_wise"
        )
    spec = TableSpec(
        name=name,
        rows=rows,
        width=width,
        mapping=mapping,
        buckets=buckets,
        sharding=sharding,
        init_scale=config.init_scale if table.init_scale < 0 else table.init_scale,
        init=table.init or config.init,
        dtype=table.dtype or config.dtype,
        optimizer=table.optimizer or config.optimizer,
        lr=table.lr or config.lr,
        eps=table.eps or config.eps,
        weight_decay=config.weight_decay if table.weight_decay < 0 else table.weight_decay,
        frozen=table.frozen,
        kernel=table.kernel or config.kernel,
        ranks=table.ranks,
        admit_after=table.admit_after or config.admit_after,
        evict=table.evict or config.evict,
        ttl_days=table.ttl_days or config.ttl_days,
    )
    return spec, problems + _optimizer_problems(spec) + _managed_problems(spec, table)


def _optimizer_problems(spec: TableSpec) -> list[str]:
    if not spec.weight_decay or spec.optimizer in DECAYING:
        return []
    return [
        f"table {spec.name!r}: weight_decay = {spec.weight_decay:g} with optimizer = {spec.optimizer!r} → FBGEMM "
        f"decays weights with {', '.join(DECAYING)} only → optimizer = 'rowwise_adagrad', or weight_decay = 0.0"
    ]


def _managed_problems(spec: TableSpec, table: Table) -> list[str]:
    """Of the settings that only managed tables have, and that they cannot have."""
    set_here = {"admit_after": table.admit_after, "evict": table.evict, "ttl_days": table.ttl_days}
    if spec.mapping != "managed":
        return [
            f"table {spec.name!r}: {key} = {value!r} but mapping = {spec.mapping!r} → only managed tables admit and "
            f"evict → mapping = 'managed', or remove {key}"
            for key, value in set_here.items()
            if value
        ]
    problems = []
    if table.ttl_days and spec.evict != "ttl":
        problems.append(
            f"table {spec.name!r}: ttl_days = {table.ttl_days:g} but evict = {spec.evict!r} → only 'ttl' evicts by age "
            "→ evict = 'ttl', or remove ttl_days"
        )
    if spec.kernel == "fused_uvm_caching":
        problems.append(
            f"table {spec.name!r}: kernel = 'fused_uvm_caching' and mapping = 'managed' → the cache would keep the "
            "values of rows that were evicted → kernel = 'fused_uvm', or mapping = 'vocabulary'"
        )
    return problems


def _unused_defaults(specs: dict[str, TableSpec], config: Embeddings) -> list[str]:
    """Settings of `[embeddings]` that no table goes by."""
    managed = [spec for spec in specs.values() if spec.mapping == "managed"]
    users = {"admit_after": managed, "evict": managed, "ttl_days": [spec for spec in managed if spec.evict == "ttl"]}
    return [
        f"embeddings.{key} = {getattr(config, key)!r} → no table has mapping = 'managed'"
        f"{' and evict = ' + repr('ttl') if key == 'ttl_days' else ''} → give one these, or remove {key}"
        for key, tables in users.items()
        if not tables and getattr(config, key) != Embeddings.model_fields[key].default
    ]


def _bucketised_rows(name: str, columns: list[str], table: Table, schema: Schema) -> tuple[int, list[str]]:
    """Rows that bucketised columns need, 0 when there are none; and what contradicts them."""
    bucketised = [column for column in columns if schema.columns[column].kind == "bucket"]
    if not bucketised:
        return 0, []
    boundaries = {schema.columns[column].boundaries for column in bucketised}
    rows = max(len(cuts) for cuts in boundaries) + 1 + RESERVED_ROWS
    problems = []
    if len(boundaries) > 1 or len(bucketised) < len(columns):
        problems.append(
            f"table {name!r} is shared by columns {', '.join(columns)} → a bucketised column shares its table "
            f"only with columns of the same boundaries → give {bucketised[0]!r} a table of its own"
        )
    if table.rows not in {0, rows}:
        problems.append(f"table {name!r}: rows = {table.rows} → its boundaries make {rows} rows → remove rows")
    if table.mapping not in {"", "identity"}:
        problems.append(
            f"table {name!r}: mapping = {table.mapping!r} → bucketised columns are identity → remove mapping"
        )
    return rows, problems


def _vocabulary_problems(name: str, rows: int, buckets: int, table: Table) -> list[str]:
    problems = []
    if table.sharding not in {"", "auto", "row_wise"}:
        problems.append(
            f"table {name!r}: sharding = {table.sharding!r} but its mapping has buckets → it is row_wise: its "
            "buckets live where their rows are → remove sharding, or use mapping = 'hash'"
        )
    if rows // buckets <= RESERVED_ROWS:
        problems.append(
            f"table {name!r}: {rows} rows in {buckets} buckets → a bucket needs at least {RESERVED_ROWS + 1} rows → "
            "fewer buckets or more rows"
        )
    return problems
