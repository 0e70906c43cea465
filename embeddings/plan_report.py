"""What a sharding plan means: table by table, rank by rank, as text and as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from embeddings.plan_boxes import Placement
from embeddings.plan_file import to_json
from embeddings.plan_load import Floats, Load, StepIds, optimizer_bytes, weight_bytes
from embeddings.specs import TableSpec

# Of a large cluster the fullest and the emptiest ranks are shown; plan.json has all.
SHOWN, ENDS = 32, (12, 4)
TABLES_SHOWN = 48  # of more the largest; plan.json has all
HEAD = ("table", "rows", "width", "dtype", "optimizer", "mapping", "sharding", "kernel", "ranks", "weights", "state",
        "ids/rank")  # fmt: skip


def human_bytes(count: float) -> str:
    """1536 → "1.5 KiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


@dataclass(frozen=True)
class TableReport:
    """One table. weight_bytes and optimizer_bytes by rank of a group. ids: unique ones that a rank asks for in a
    step."""

    name: str
    rows: int
    width: int
    dtype: str
    optimizer: str
    mapping: str
    sharding: str
    kernel: str
    weight_bytes: list[int]
    optimizer_bytes: list[int]
    ids: float

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
    """A plan for `world_size` ranks, in `replicas` groups of `size` that each hold all tables: of one group."""

    placement: Placement
    specs: dict[str, TableSpec]
    load: Load
    step_ids: StepIds
    world_size: int
    replicas: int = 1
    sync_steps: int = 1

    @property
    def size(self) -> int:
        """Ranks of a group."""
        return self.world_size // self.replicas

    @cached_property
    def tables(self) -> list[TableReport]:
        """In the order of the specs."""
        return [self._table(name) for name in self.placement]

    def _table(self, name: str) -> TableReport:
        spec, placed = self.specs[name], self.placement[name]
        weights, states = [0] * self.size, [0] * self.size
        for box in placed.boxes:
            weights[box.rank] += weight_bytes(spec, box.rows, box.columns)
            states[box.rank] += optimizer_bytes(spec.optimizer, box.rows, box.columns)
        return TableReport(
            name=name,
            rows=spec.rows,
            width=spec.width,
            dtype=spec.dtype,
            optimizer=spec.optimizer,
            mapping=spec.mapping,
            sharding=placed.sharding,
            kernel=placed.kernel,
            weight_bytes=weights,
            optimizer_bytes=states,
            ids=self.step_ids.asked[name],
        )

    @property
    def bytes(self) -> list[int]:
        """Weights and optimizer state of all tables by rank, wherever they lie."""
        return [sum(sizes) for sizes in zip(*(table.bytes for table in self.tables), strict=True)] or [0] * self.size

    @property
    def sync_bytes(self) -> float:
        """What the fullest rank sends at most when the groups are averaged (a ring's share): all rows and state."""
        values = max(float(rank) for rank in self.bytes)
        return 2 * (self.replicas - 1) / self.replicas * values

    @property
    def balance(self) -> dict[str, float]:
        """{what: the fullest rank's ÷ the mean}; 1 is even."""
        kinds = {"memory": self.load.device + self.load.host, "lookup": self.load.lookup, "exchange": self.load.busiest}
        return {kind: float(values.max() / values.mean()) if values.any() else 1.0 for kind, values in kinds.items()}

    def lines(self) -> list[str]:
        """An aligned table: one line a table, then one line a rank, then what holds for all."""
        return [*self._table_lines(), "", *self._rank_lines(), "", *self._closing_lines()]

    def _table_lines(self) -> list[str]:
        by_size = sorted(self.tables, key=lambda table: -sum(table.bytes))
        hidden = by_size[TABLES_SHOWN:]
        names = {table.name for table in hidden}
        size = sum(sum(table.bytes) for table in hidden)
        cut = [f"… and {len(hidden):,} smaller tables, {human_bytes(size)} with optimizer state"] if hidden else []
        shown = [table for table in self.tables if table.name not in names]
        return self._lines_of(shown) + cut

    def _lines_of(self, tables: list[TableReport]) -> list[str]:
        body = [
            [
                table.name,
                f"{table.rows:,}",
                str(table.width),
                table.dtype,
                table.optimizer,
                table.mapping,
                table.sharding,
                table.kernel,
                _ranks(table.ranks),
                human_bytes(sum(table.weight_bytes)),
                human_bytes(sum(table.optimizer_bytes)),
                f"{table.ids:,.0f}",
            ]
            for table in tables
        ]
        return aligned([[*HEAD], *body], right={1, 2, 9, 10, 11})

    def _rank_lines(self) -> list[str]:
        load, hosted = self.load, bool(self.load.host.any())
        columns: list[tuple[str, Floats]] = [("tables", load.device)]
        columns += [("on the host", load.host)] if hosted else []
        columns += [
            ("looked up/step", load.lookup),
            ("updated/step", load.update),
            ("rows sent", load.rows_sent),
            ("gradients sent", load.gradients_sent),
        ]
        shown = list(range(self.size))
        if self.size > SHOWN:
            ordered = sorted(shown, key=lambda rank: (-load.device[rank], rank))
            shown = sorted(ordered[: ENDS[0]] + ordered[-ENDS[1] :])
        cells = [["", *(name for name, _ in columns)]]
        cells += [[f"rank {rank}", *(human_bytes(values[rank]) for _, values in columns)] for rank in shown]
        cut = f"… the fullest {ENDS[0]} and the emptiest {ENDS[1]} of {self.size} ranks"
        return aligned(cells, right=set(range(1, len(cells[0])))) + ([cut] if len(shown) < self.size else [])

    def _closing_lines(self) -> list[str]:
        parts = " · ".join(f"{kind} {value:.2f}" for kind, value in self.balance.items())
        lines = [f"balance   {parts} (fullest rank ÷ mean)", f"ids       {self.step_ids.source}"]
        if self.replicas > 1:
            lines.append(
                f"replicas  {self.replicas} groups of {self.size} ranks hold all tables each (shown: the first); "
                f"averaged every {self.sync_steps} step(s), at most {human_bytes(self.sync_bytes)} sent by a rank"
            )
        return lines

    def to_json(self) -> dict[str, Any]:
        """Plain values, bytes as integers; it can be given back (`embeddings.plan`)."""
        plain = to_json(self.placement, self.specs, self.replicas, self.world_size)
        for table, told in zip(self.tables, plain["tables"], strict=True):
            told |= {
                "dtype": table.dtype,
                "optimizer": table.optimizer,
                "mapping": table.mapping,
                "ranks": table.ranks,
                "weight_bytes": table.weight_bytes,
                "optimizer_bytes": table.optimizer_bytes,
                "unique_ids_per_rank": round(table.ids, 1),
            }
        by_rank = {name: [round(value) for value in values] for name, values in vars(self.load).items()}
        return plain | {
            "rank_bytes": self.bytes,
            "load": by_rank,
            "balance": {kind: round(value, 4) for kind, value in self.balance.items()},
            "unique_ids": {"measured": self.step_ids.measured, "source": self.step_ids.source},
            "replica_sync_steps": self.sync_steps,
        }


def _ranks(ranks: list[int]) -> str:
    """[0, 1, 2] → "0–2"."""
    if len(ranks) > 1 and ranks == list(range(ranks[0], ranks[-1] + 1)):
        return f"{ranks[0]}–{ranks[-1]}"
    return ",".join(map(str, ranks))


def aligned(cells: list[list[str]], right: set[int]) -> list[str]:
    """Columns of one width each, two blanks apart."""
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return [
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
