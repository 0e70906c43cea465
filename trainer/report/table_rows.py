"""The tables of a run's embeddings: how they are sharded, and how they were at the last look."""

from __future__ import annotations

from typing import Any

from trainer.report.formats import count, number, plain, share, size
from trainer.report.learning import mapping
from trainer.report.more_figures import TABLE_FIGURES
from trainer.report.read import Run
from trainer.report.summary import Table
from trainer.telemetry.words import UNKNOWN

MOST = 200  # tables of one run
MANY_RANKS = 8
WORST_BY = ("fill", "unknown_rate", "collision_rate")


def plan_table(run: Run) -> Table:
    """plan.json, table by table, the largest first."""
    tables = [table for table in run.plan.get("tables") or [] if isinstance(table, dict)]
    tables.sort(key=lambda table: -_bytes(table))
    head = [
        "table",
        "rows",
        "width",
        "dtype",
        "optimizer",
        "mapping",
        "sharding",
        "kernel",
        "ranks",
        "weights",
        "state",
        "ids/rank",
    ]
    rows = [
        [
            plain(table.get("name", ""), 80),
            count(table.get("rows")),
            count(table.get("width")),
            *(plain(table.get(key, ""), 40) for key in ("dtype", "optimizer", "mapping", "sharding", "kernel")),
            _ranks(table.get("ranks")),
            size(_sum(table.get("weight_bytes"))),
            size(_sum(table.get("optimizer_bytes"))),
            count(table.get("unique_ids_per_rank")),
        ]
        for table in tables[:MOST]
    ]
    balance = mapping(run.plan.get("balance"))
    parts = [ranks(run.plan["world_size"])] if run.plan.get("world_size") else []
    parts += [f"{what} {number(value, 2)}" for what, value in balance.items()]
    note = f"{parts[0]}; fullest rank ÷ mean: {', '.join(parts[1:])}" if len(parts) > 1 else "".join(parts)
    return Table(head, rows, frozenset((1, 2, 9, 10, 11)), _cut(note, len(tables)))


def health_table(run: Run) -> Table:
    """The newest figures of every table, those nearest to trouble first."""
    lines = run.lines
    newest = {name: {key: _last(run, name, key) for key in TABLE_FIGURES} for name in lines.names("tables")}
    order = sorted(newest, key=lambda name: (-max(newest[name][key] or 0.0 for key in WORST_BY), name))
    shares = {key for key, (_, unit, _) in TABLE_FIGURES.items() if unit == "share"}
    rows = [
        [plain(name, 80), *(_cell(newest[name][key], key in shares) for key in TABLE_FIGURES)] for name in order[:MOST]
    ]
    head = ["table", *(title.lower() for title, _, _ in TABLE_FIGURES.values())]
    return Table(head, rows, frozenset(range(1, len(head))), _cut("", len(order)))


def ranks(world_size: object) -> str:
    """1 rank, 8 ranks."""
    return f"{count(world_size)} rank{'' if world_size == 1 else 's'}"


def _cut(note: str, tables: int) -> str:
    cut = f"the first {MOST} of {tables} tables" if tables > MOST else ""
    return "; ".join(part for part in (note, cut) if part)


def _last(run: Run, name: str, figure: str) -> float | None:
    column = run.lines.column("tables", name, figure)
    return column.last if column is not None else None


def _cell(value: float | None, is_share: bool) -> str:
    if value is None:
        return UNKNOWN
    return share(value) if is_share else number(value, 3)


def _ranks(ranks: Any) -> str:
    if not isinstance(ranks, list):
        return UNKNOWN
    return ", ".join(map(str, ranks)) if len(ranks) <= MANY_RANKS else f"{len(ranks)} ranks"


def _bytes(table: dict[str, Any]) -> int:
    return _sum(table.get("weight_bytes")) + _sum(table.get("optimizer_bytes"))


def _sum(values: object) -> int:
    return sum(value for value in values if isinstance(value, int)) if isinstance(values, list) else 0
