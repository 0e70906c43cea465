"""The table at the end of a run, from plain values: they may have crossed a process boundary. It fits 80 columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from trainer.telemetry.console import collapse_line
from trainer.telemetry.words import UNKNOWN, count, number, rate

NUMBERS = ("loss", "NE", "AUC", "GAUC", "cal", "examples")
TABLE_NUMBERS = {
    "fill": "fill",
    "unknown ids": "unknown_rate",
    "collisions": "collision_rate",
    "hottest id": "hottest_share",
    "never trained": "never_touched_share",
}


def closing_table(result: Mapping[str, Any], commands: Sequence[str] = ()) -> Group:
    """For rich.console.Console.print. result: of Telemetry.finish. commands: to try next."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in ("split", "task"):  # names give way where the screen is narrow, numbers never
        table.add_column(heading, overflow="ellipsis")
    for heading in NUMBERS:
        table.add_column(heading, justify="right", no_wrap=True)
    parts: list[Table | Text] = [table]
    if result.get("train"):
        _add_rows(table, "train", result["train"]["tasks"])
        speed = result.get("examples_per_second")
        over = f" · {rate(speed)} examples/s over the run" if speed else ""
        first, last = result.get("train_steps") or (None, None)
        steps = f"over steps {count(first)}–{count(last)}" if first and last else "since the last log"
        parts += [_line(f"train: before each update, {steps}{over}")]
    for record in result.get("evals", ()):
        _add_rows(table, record["split"], record["tasks"])
        if record.get("collapse"):
            parts += [_line(part) for part in collapse_line(record["collapse"]).split(" · ")]
    if result.get("tables"):
        parts += [Text(""), _tables(result["tables"])]
    places: Mapping[str, str] = result.get("places", {})
    if places:
        width = max(map(len, places))
        parts += [Text(""), *(_line(f"{what:<{width}}  {where}") for what, where in places.items())]
    if commands:
        parts += [Text(""), Text("try next:"), *(_line(f"  {command}") for command in commands)]
    return Group(*parts)


def _add_rows(table: Table, split: str, tasks: Mapping[str, Mapping[str, Any]]) -> None:
    for row, (task, values) in enumerate(tasks.items()):
        table.add_row(
            Text(split if row == 0 else ""),
            Text(task),
            number(values["loss"], 4),
            number(values["ne"], 4),
            number(values["auc"], 4),
            number(values["gauc"], 4) if "gauc" in values else "",
            number(values["calibration"], 3),
            count(values["examples"]),
        )


def _tables(tables: Mapping[str, Mapping[str, float | None]]) -> Table:
    """Tables that are worth a look, by their newest sample: shares in percent."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("tables worth a look", overflow="ellipsis")
    for heading in TABLE_NUMBERS:
        table.add_column(heading, justify="right", no_wrap=True)
    for name, values in tables.items():
        shares = [values[key] for key in TABLE_NUMBERS.values()]
        table.add_row(Text(name), *(UNKNOWN if share is None else f"{100 * share:.0f} %" for share in shares))
    return table


def _line(text: str) -> Text:
    """Whole, however narrow the screen: paths and commands are there to be copied."""
    return Text(text, no_wrap=True, overflow="ignore")
