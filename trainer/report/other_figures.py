"""Whatever else a train line holds: goodput, slices, and every number that no other plot shows.

What is declared for Prometheus has its panel and its words from there; what is not, is shown by its name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from trainer.report.figures import Curve, Panel, Thinned, Unit, rounded
from trainer.report.formats import plain
from trainer.report.learning import NOT_SHOWN, SHOWN, SPEED
from trainer.report.lines import Column, Key
from trainer.telemetry.declared import METRICS, Metric

OTHER, SLICES = "More figures", "Slices"
SECTIONS = {"Data": "Data", "System": "System"}  # of the dashboards; all others: More figures
SLICED = (("ne", "NE"), ("auc", "AUC"), ("calibration", "Calibration"))
MOST_LINES = 8  # of a panel
MOST_SLICES = 20
MOST_PANELS = 48


@dataclass
class _Found:
    """What goes into one panel: (run, name, column) of each curve."""

    title: str
    section: str
    unit: Unit
    note: str = ""
    columns: list[tuple[int, str, Column]] = field(default_factory=list)


def other_panels(thin: Thinned) -> tuple[list[Panel], list[str]]:
    """Panels, and a sentence about each kind that was left out."""
    found: dict[tuple[str, str, str], _Found] = {}
    for number, run in enumerate(thin.runs):
        for path in run.lines.columns:
            column = run.lines.column(*path)
            if path[0] not in SHOWN | NOT_SHOWN and column is not None:
                place = _place(path)
                key = (place.section, place.title, place.unit)
                found.setdefault(key, place).columns.append((number, _name(path), column))
    moving = [of for of in found.values() if any(_moves(column) for _, _, column in of.columns)]
    notes = [f"Not drawn, because they are 0 throughout: {_list_of(found, moving)}"] if len(moving) < len(found) else []
    if len(moving) > MOST_PANELS:
        notes.append(f"{len(moving) - MOST_PANELS} further figures are not drawn")
    return [_panel(thin, of) for of in moving[:MOST_PANELS]], notes


def goodput_panels(thin: Thinned) -> list[Panel]:
    """Goodput of all runs; of each, what was lost to which cause, on one another."""
    share = Panel(SPEED, "Goodput", "share", "time in steps whose result survived over wall time, over all starts")
    panels = [share]
    for number, run in enumerate(thin.runs):
        column = run.lines.column("goodput", "share")
        if column is not None:
            share.curves.append(thin.curve(number, "Goodput", column, group=run.name, colour=number))
        causes = run.lines.names("goodput", "lost_seconds")
        known = {name: run.lines.column("goodput", "lost_seconds", name) for name in causes}
        parts = {name: column for name, column in known.items() if column is not None and _moves(column)}
        if not parts or len({len(column.at) for column in parts.values()}) > 1:
            continue
        lost = Panel(SPEED, "Lost time", "seconds", "by cause, since the run's first start, on one another", run=number)
        stacked = {name: np.nan_to_num(np.frombuffer(column.values)) for name, column in parts.items()}
        whole = np.sum(list(stacked.values()), axis=0)
        kept = thin.kept(whole)
        at = np.frombuffer(next(iter(parts.values())).at, dtype=np.int64)[kept].tolist()
        for place, (name, values) in enumerate(stacked.items()):
            words = name.replace("_", " ")
            lost.curves.append(Curve(number, words, at, rounded(values[kept]), place, style="area", group=words))
        lost.top = 1.05 * float(whole.max())
        panels.append(lost)
    return [panel for panel in panels if panel.curves]


def slice_panels(thin: Thinned) -> list[Panel]:
    """Scores of training per value of `telemetry.slice_by`: a panel a run, task and score."""
    panels = []
    for number, run in enumerate(thin.runs):
        values = run.lines.names("slices", "values")[:MOST_SLICES]
        tasks = list(dict.fromkeys(task for value in values for task in run.lines.names("slices", "values", value)))
        by = run.lines.newest.get("slices")
        named = plain(by.get("by", "slice"), 40) if isinstance(by, dict) else "slice"
        for task in tasks:
            for key, title in SLICED:
                panel = Panel(SLICES, f"{title} of {plain(task, 40)} by {named}", note="since the last log", run=number)
                for place, value in enumerate(values):
                    column = run.lines.column("slices", "values", value, task, key)
                    if column is not None:
                        panel.curves.append(thin.curve(number, value, column, colour=place, group=value))
                panels.append(panel)
    return [panel for panel in panels if panel.curves]


def _place(path: Key) -> _Found:
    """The panel that a figure belongs to, without curves. Of what is not declared: figures with the same first and last
    name are one panel (`queues.read.depth` and `queues.write.depth`), or, two deep, with the same first and unit."""
    metric = _declared(path)
    if metric is not None:
        title = metric.panel.partition(" / ")[2]
        known = {"Throughput", "Step time"}  # of these titles there is a panel already
        if title in known:
            title = _words(path[-1])
        return _Found(title, SECTIONS.get(metric.dashboard, OTHER), _unit(metric.name), metric.help)
    parts = (path[0], path[-1]) if len(path) > 2 else path[:1]
    title = " · ".join(map(_words, parts))
    return _Found(plain(title, 60), OTHER, _unit(path[-1]), "")


def _declared(path: Key) -> Metric | None:
    """By the field of a record that it is told of; figures of the machine by their names."""
    names = {".".join(path), ".".join(path[:-1]) if len(path) > 1 else ""} - {""}
    told = next((metric for metric in METRICS if metric.field in names), None)
    return told or next((metric for metric in METRICS if path[0] == "system" and metric.name == path[-1]), None)


def _panel(thin: Thinned, found: _Found) -> Panel:
    names = list(dict.fromkeys(name for _, name, _ in found.columns))
    more = f"the first {MOST_LINES} of {len(names)}" if len(names) > MOST_LINES else ""
    note = "; ".join(part for part in (found.note if len(names) == 1 else "", more) if part)
    alone = len(names) == 1
    title = _words(names[0]) if alone and found.note else found.title  # a panel of a dashboard may hold more than this
    panel = Panel(found.section, title, found.unit, note)
    for number, name, column in found.columns:
        place = names.index(name)
        if place >= MOST_LINES:
            continue
        words = _words(name) if name else found.title
        look = {"colour": number, "dash": 0} if alone else thin.look(number, place)
        run = thin.runs[number].name
        group = words if len(thin.runs) == 1 else run if alone else f"{run} · {words}"
        panel.curves.append(thin.curve(number, words, column, group=group, **look))
    return panel


def _name(path: Key) -> str:
    """Of a curve in its panel."""
    return path[-1] if len(path) < 3 else " · ".join(path[1:-1])


def _words(name: str) -> str:
    text = name.replace("_", " ")
    return text[:1].upper() + text[1:]


def _unit(name: str) -> Unit:
    endings: tuple[tuple[str, Unit], ...] = (
        ("_per_second", "rate"),
        ("seconds", "seconds"),
        ("bytes", "bytes"),
        ("share", "share"),
        ("goodput", "share"),
        ("progress", "share"),
    )
    return next((unit for ending, unit in endings if name.removesuffix("_total").endswith(ending)), "")


def _moves(column: Column) -> bool:
    """Holds anything but 0."""
    return any(value for value in column.values if math.isfinite(value))


def _list_of(found: dict[tuple[str, str, str], _Found], moving: list[_Found]) -> str:
    return plain(", ".join(of.title.lower() for of in found.values() if of not in moving), 400)
