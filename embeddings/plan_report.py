"""What a sharding plan means for memory: table by table, rank by rank, as text and as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

FLOAT_BYTES = 4
LARGEST_TABLES = 3


def optimizer_bytes(optimizer: str, rows: int, columns: int) -> int:
    """State of one shard of a table."""
    return {"sgd": 0, "adagrad": rows * columns, "rowwise_adagrad": rows}[optimizer] * FLOAT_BYTES


def human_bytes(count: float) -> str:
    """1536 → "1.5 KiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


@dataclass(frozen=True)
class TableReport:
    """One table. weight_bytes and optimizer_bytes by rank."""

    name: str
    rows: int
    width: int
    dtype: str
    mapping: str
    sharding: str
    weight_bytes: list[int]
    optimizer_bytes: list[int]

    @property
    def ranks(self) -> list[int]:
        """Ranks that hold a part of it."""
        return [rank for rank, size in enumerate(self.weight_bytes) if size]

    @property
    def bytes(self) -> list[int]:
        """Weights and optimizer state by rank."""
        return [weight + state for weight, state in zip(self.weight_bytes, self.optimizer_bytes, strict=True)]


@dataclass(frozen=True)
class PlanReport:
    """A plan for `world_size` ranks."""

    world_size: int
    tables: list[TableReport]

    @property
    def bytes(self) -> list[int]:
        """Weights and optimizer state of all tables by rank."""
        return [sum(table.bytes[rank] for table in self.tables) for rank in range(self.world_size)]

    def lines(self) -> list[str]:
        """An aligned table: one line a table, then one line a rank."""
        head = ["table", "rows", "width", "dtype", "mapping", "sharding", "ranks", "weights", "optimizer"]
        body = [
            [
                table.name,
                f"{table.rows:,}",
                str(table.width),
                table.dtype,
                table.mapping,
                table.sharding,
                _ranks(table.ranks),
                human_bytes(sum(table.weight_bytes)),
                human_bytes(sum(table.optimizer_bytes)),
            ]
            for table in self.tables
        ]
        per_rank = [
            [
                f"rank {rank}",
                human_bytes(self.bytes[rank]),
                human_bytes(sum(table.weight_bytes[rank] for table in self.tables)),
                human_bytes(sum(table.optimizer_bytes[rank] for table in self.tables)),
            ]
            for rank in range(self.world_size)
        ]
        return [
            *_aligned([head, *body], right={1, 2, 7, 8}),
            "",
            *_aligned([["", "tables", "weights", "optimizer"], *per_rank], right={1, 2, 3}),
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain values, bytes as integers."""
        return {
            "world_size": self.world_size,
            "tables": [
                {
                    "name": table.name,
                    "rows": table.rows,
                    "width": table.width,
                    "dtype": table.dtype,
                    "mapping": table.mapping,
                    "sharding": table.sharding,
                    "ranks": table.ranks,
                    "weight_bytes": table.weight_bytes,
                    "optimizer_bytes": table.optimizer_bytes,
                }
                for table in self.tables
            ],
            "rank_bytes": self.bytes,
        }

    def misfits(self, memory_per_rank: int) -> list[str]:
        """One line a rank whose tables take more than `memory_per_rank` bytes: by how much, which tables, what would
        help.
        """
        enough = -(-sum(self.bytes) // memory_per_rank)
        return [
            f"rank {rank}: tables take {human_bytes(size)} of {human_bytes(memory_per_rank)}, "
            f"{human_bytes(size - memory_per_rank)} too much ({self._largest(rank)}) → every rank's tables must "
            f"fit → {self._remedy(enough)}"
            for rank, size in enumerate(self.bytes)
            if size > memory_per_rank
        ]

    def _largest(self, rank: int) -> str:
        largest = sorted(self.tables, key=lambda table: table.bytes[rank], reverse=True)[:LARGEST_TABLES]
        return ", ".join(f"{table.name} {human_bytes(table.bytes[rank])}" for table in largest if table.bytes[rank])

    def _remedy(self, enough: int) -> str:
        if enough > self.world_size:
            return f"at least {enough} ranks, fewer rows, or a smaller width"
        return "spread the largest over all ranks (sharding = 'row_wise'), fewer rows, or a smaller width"


def _ranks(ranks: list[int]) -> str:
    """[0, 1, 2] → "0–2"."""
    if len(ranks) > 1 and ranks == list(range(ranks[0], ranks[-1] + 1)):
        return f"{ranks[0]}–{ranks[-1]}"
    return ",".join(map(str, ranks))


def _aligned(cells: list[list[str]], right: set[int]) -> list[str]:
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return [
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
