"""What these verbs found, as tables on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from embeddings.plan_report import human_bytes
from pipelines.batch import Position
from trainer.checkpoint_verbs.listing import Listed, Metrics

if TYPE_CHECKING:
    from trainer.checkpoint_verbs.diffing import DenseChange, TableChange

WIDE = 400  # nothing is cut off: what is longer than a terminal goes on in its next line
MOST_PARAMETERS = 5


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]], right: set[int]) -> None:
    """right: columns of numbers."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="right" if place in right else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    console = Console(highlight=False)
    console.width = max(console.width, WIDE)
    console.print(table, crop=False)


def print_list(found: list[Listed]) -> None:
    """One line a checkpoint, then why those that are not complete are not, and what the newest went on from."""
    headings = ("step", "kind", "examples", "data", "committed (UTC)", "size", "ranks", "evaluation")
    print_table(headings, map(_listed, found), right={0, 2, 5, 6})
    for listed in found:
        if listed.problem:
            click.echo(f"{listed.name} is not complete: {listed.problem}")
    lineage = next((listed.resumed_from for listed in reversed(found) if not listed.problem), ())
    if lineage:
        click.echo(f"the newest went on from {' → '.join(lineage)}")


def print_changes(tables: list[TableChange], dense: list[DenseChange], same: int) -> None:
    """A line a table, then the dense parameters that moved furthest."""
    headings = ("table", "rows", "changed", "share", "new ids", "lost ids", "mean |Δ|", "largest |Δ|", "")
    print_table(headings, map(_changed, tables), right={1, 2, 3, 4, 5, 6, 7})
    if dense:
        furthest = sorted(dense, key=lambda change: change.change or 0.0, reverse=True)[:MOST_PARAMETERS]
        print_table(("dense parameter", "norm before", "norm", "norm of Δ"), map(_moved, furthest), right={1, 2, 3})
    more = f", the {MOST_PARAMETERS} that moved furthest are shown" if len(dense) > MOST_PARAMETERS else ""
    click.echo(f"dense parameters: {len(dense)} changed{more} · {same} unchanged")


def _listed(listed: Listed) -> tuple[str, ...]:
    if listed.problem:
        return (str(listed.step), "incomplete", *("",) * 6)
    position = listed.position
    when = datetime.fromtimestamp(listed.time, UTC)
    return (
        str(listed.step),
        f"{listed.kind} of {_step_of(listed.base)}" if listed.base else listed.kind,
        f"{listed.examples:,}",
        "–" if position is None else _where(position),
        f"{when:%Y-%m-%d %H:%M:%S}",
        human_bytes(listed.bytes),
        str(listed.world_size),
        _scores(listed.tasks),
    )


def _step_of(name: str) -> str:
    """step_00000040 → "40"."""
    return name.removeprefix("step_").lstrip("0") or "0"


def _where(position: Position) -> str:
    epoch = f" · epoch {position.epoch}" if position.epoch else ""
    return f"{position.name} · batch {position.batch}{epoch}"


def _scores(tasks: Metrics | None) -> str:
    parts = []
    for task, values in (tasks or {}).items():
        known = [(name, values.get(key)) for name, key in (("NE", "ne"), ("AUC", "auc"))]
        parts.append(" ".join([task, *(f"{name} {value:.4f}" for name, value in known if value is not None)]))
    return " · ".join(parts)


def _changed(change: TableChange) -> tuple[str, ...]:
    if change.note:
        return (change.table, f"{change.rows:,}", *("",) * 6, change.note)
    return (
        change.table,
        f"{change.rows:,}",
        f"{change.changed:,}",
        f"{100 * change.share:.2f} %",
        f"{change.new_ids:,}",
        f"{change.lost_ids:,}",
        f"{change.mean_change:.2e}",
        f"{change.largest_change:.2e}",
        "",
    )


def _moved(change: DenseChange) -> tuple[str, ...]:
    def norm(value: float | None) -> str:
        return "–" if value is None else f"{value:.4g}"

    return (change.parameter, norm(change.norm_before), norm(change.norm), norm(change.change))
