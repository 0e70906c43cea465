"""The table at the end of a run, from plain values: they may have crossed a process boundary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from trainer.telemetry.console import number, rate


def closing_table(result: Mapping[str, Any], commands: Sequence[str] = ()) -> Group:
    """For rich.console.Console.print. result: of Telemetry.finish. commands: to try next."""
    table = Table("split", "task", pad_edge=False)
    for heading in ("loss", "NE", "AUC", "GAUC", "calibration", "examples", "examples/s"):
        table.add_column(heading, justify="right")
    speed = result.get("examples_per_second")
    if result.get("train"):
        _add_rows(table, "train, last log", result["train"]["tasks"], rate(speed) if speed else "")
    for record in result.get("evals", ()):
        _add_rows(table, record["split"], record["tasks"], "")
    lines: list[Text] = []
    places: Mapping[str, str] = result.get("places", {})
    if places:
        width = max(map(len, places))
        lines += [Text(""), *(Text(f"{what:<{width}}  {where}") for what, where in places.items())]
    if commands:
        lines += [Text(""), Text("try next:"), *(Text(f"  {command}") for command in commands)]
    return Group(table, *lines)


def _add_rows(table: Table, split: str, tasks: Mapping[str, Mapping[str, Any]], speed: str) -> None:
    for row, (task, values) in enumerate(tasks.items()):
        first = row == 0
        table.add_row(
            Text(split if first else ""),
            Text(task),
            number(values["loss"], 4),
            number(values["ne"], 4),
            number(values["auc"], 4),
            number(values["gauc"], 4) if "gauc" in values else "",
            number(values["calibration"], 3),
            f"{values['examples']:,}".replace(",", " "),
            speed if first else "",
        )
