"""A comparison in words and tables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from trainer.compare import Comparison, OfTask
from trainer.metrics.bootstrap import LEVEL, METRICS, Difference
from trainer.telemetry.console import UNKNOWN, number
from trainer.wanted import OTHER

TITLES = {"ne": "NE", "auc": "AUC", "gauc": "GAUC", "calibration": "calibration"}


def report(found: Comparison, name_a: str, name_b: str) -> Group:
    """For rich.console.Console.print."""
    parts: list[Table | Text] = [_line(f"A  {name_a}, step {found.a.step}"), _line(f"B  {name_b}, step {found.b.step}")]
    parts += [_line(line) for line in _matched(found)]
    parts += [Text(""), _table(found)]
    for task, of in found.tasks.items():
        parts += [_line(line) for line in sentences(task, of)]
    if found.slices is not None:
        parts += [Text(""), _slice_table(found)]
        shown = [d for tasks in found.slices.values() for of in tasks.values() for d in of.differences.values()]
        chance = (1 - LEVEL) * sum(d.low is not None for d in shown)
        parts += [_line(f"* its interval leaves out 0; of so many differences, about {chance:.0f} do by chance alone")]
    return Group(*parts)


def sentences(task: str, of: OfTask) -> list[str]:
    """What to say of a task, a line a metric."""
    if of.apart is None:
        return [f"{task}: no examples that both have → nothing to compare"]
    if of.apart.largest == 0:
        return [f"{task}: the two predict the same, to the bit"]
    return [f"{task}: {verdict(metric, of.differences[metric])}" for metric in METRICS]


def verdict(metric: str, found: Difference) -> str:
    """`B is better in AUC by .0021 [.0008, .0035]`."""
    title = TITLES[metric]
    if found.difference is None:
        return f"{title} is not defined here"
    if found.low is None or found.high is None or found.gain is None:
        return f"too few users with both classes to tell about {title}"
    if not found.better:
        return f"no difference in {title} that this data can tell: B − A = {_with_interval(found)}"
    sign = 1 if found.better == "b" else -1
    low, high = sorted((sign * (found.gain_low or 0.0), sign * (found.gain_high or 0.0)))
    by = f"{_short(sign * found.gain, low, high)} {_interval(low, high)}"
    what = "calibrated: |ln calibration| is less" if metric == "calibration" else f"in {title}"
    return f"{found.better.upper()} is better {what} by {by}"


def _matched(found: Comparison) -> list[str]:
    lines = [
        f"{found.positions:,} positions of the same rows · {LEVEL:.0%} intervals from {found.resamples:,} resamples "
        f"of users (seed {found.seed})"
    ]
    for name, count in (("A", found.only_a), ("B", found.only_b)):
        if count:
            lines.append(f"{count:,} positions that only {name} has predicted are left out")
    for task, of in found.tasks.items():
        if of.unshared:
            lines.append(f"{task}: {of.unshared:,} positions that are an example of one of the two only are left out")
    for name, mine, theirs in (("A", found.a.tasks, found.b.tasks), ("B", found.b.tasks, found.a.tasks)):
        alone = [task for task in mine if task not in theirs]
        if alone:
            lines.append(f"only {name} predicts {', '.join(alone)}")
    return lines


def _table(found: Comparison) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("task", overflow="ellipsis")
    table.add_column("metric")
    for heading in ("A", "B", "B − A", "interval"):
        table.add_column(heading, justify="right", no_wrap=True)
    for task, of in found.tasks.items():
        rows = [(TITLES[m], *_cells(of.differences[m])) for m in METRICS]
        if of.apart is not None:
            relative = UNKNOWN if of.apart.relative is None else f"{of.apart.relative:.2%} of mean p"
            rows.append(("mean |p_B − p_A|", "", "", number(of.apart.mean, 4), relative))
            rows.append(("correlation", "", "", number(of.apart.correlation, 4), "of log-odds"))
        rows.append(("examples", "", "", f"{of.examples:,}", f"of {of.users:,} users"))
        for place, cells in enumerate(rows):
            table.add_row(Text(task if place == 0 else ""), *(Text(cell) for cell in cells))
    return table


def _cells(of: Difference) -> tuple[str, str, str, str]:
    interval = UNKNOWN if of.low is None or of.high is None else _interval(of.low, of.high)
    difference = UNKNOWN if of.difference is None else _short(of.difference, of.low, of.high)
    return number(of.a, 4), number(of.b, 4), difference, interval


def _slice_table(found: Comparison) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(found.by, overflow="fold")
    table.add_column("task", overflow="ellipsis")
    for metric in METRICS:
        table.add_column(f"{TITLES[metric]} B − A", justify="right", no_wrap=True)
    table.add_column("examples", justify="right", no_wrap=True)
    for value, tasks in (found.slices or {}).items():
        name = f"{OTHER}: {found.others:,} more" if value == OTHER and found.others else value
        for place, (task, of) in enumerate(tasks.items()):
            cells = [_slice_cell(of.differences[metric]) for metric in METRICS]
            table.add_row(Text(name if place == 0 else ""), Text(task), *cells, f"{of.examples:,}")
    return table


def _slice_cell(of: Difference) -> str:
    if of.difference is None:
        return UNKNOWN
    return f"{_short(of.difference, of.low, of.high)}{'*' if of.better else ' '}"


def _with_interval(found: Difference) -> str:
    assert found.difference is not None
    return f"{_short(found.difference, found.low, found.high)} {_interval(found.low or 0.0, found.high or 0.0)}"


def _interval(low: float, high: float) -> str:
    return f"[{_short(low, low, high)}, {_short(high, low, high)}]"


def _short(value: float, low: float | None, high: float | None) -> str:
    """As many decimals as two figures of the interval's width have."""
    width = 0.0 if low is None or high is None else high - low
    decimals = 4 if width <= 0 else min(9, max(3, 1 - math.floor(math.log10(width))))
    return number(round(value, decimals) + 0.0, decimals).replace("-", "−")  # no minus before nothing


def _line(text: str) -> Text:
    """Whole, however narrow the screen."""
    return Text(text, no_wrap=True, overflow="ignore")


def to_json(value: Any) -> Any:
    """Plain JSON of a comparison's parts."""
    if hasattr(value, "__dataclass_fields__"):
        plain = {name: to_json(getattr(value, name)) for name in value.__dataclass_fields__}
        return plain | ({"better": value.better} if isinstance(value, Difference) else {})
    if isinstance(value, Mapping):
        return {key: to_json(inner) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return [to_json(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
