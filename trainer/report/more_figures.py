"""Curves that only some runs have: health of tables, collapse, and whatever else a train line holds."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from trainer.report.figures import Curve, Panel, Thinned, Unit
from trainer.report.formats import plain
from trainer.report.learning import NOT_SHOWN, SHOWN, SPEED, mapping
from trainer.report.lines import Column, Key

TABLES, COLLAPSE, OTHER = "Tables", "Collapse", "More figures"
TABLE_FIGURES: dict[str, tuple[str, Unit, str]] = {
    "fill": ("Fill", "share", "rows handed out over rows"),
    "unknown_rate": ("Unknown ids", "share", "occurrences of ids that have the unknown row"),
    "collision_rate": ("Collisions", "share", "ids of a batch that share their row with another"),
    "hottest_share": ("Hottest id", "share", "occurrences of the most frequent id over all"),
    "unique_share": ("Unique ids", "share", "unique ids over occurrences, in a global batch"),
    "never_touched_share": ("Never trained", "share", "rows that no gradient has reached"),
    "row_norm_max": ("Largest row norm", "", "L2, of the rows looked up"),
    "admissions": ("Admissions", "", "ids given a row since the sample before"),
    "evictions": ("Evictions", "", "ids that lost their row since the sample before"),
}
MOST_LINES = 8  # of a panel
MOST_PANELS = 36  # of figures that this page does not know


def table_panels(thin: Thinned) -> list[Panel]:
    """A panel a figure and run: the tables where it is highest now. Figures that are 0 everywhere are left out."""
    panels = []
    for number, run in enumerate(thin.runs):
        for figure, (title, unit, note) in TABLE_FIGURES.items():
            columns = {name: run.lines.column("tables", name, figure) for name in run.lines.names("tables")}
            known = {name: column for name, column in columns.items() if column is not None}
            if not any(max(map(_or_zero, column.values), default=0.0) for column in known.values()):
                continue
            first = sorted(known, key=lambda name: (-(known[name].last or 0.0), name))[:MOST_LINES]
            more = f"; the {len(first)} highest of {len(known)} tables" if len(known) > len(first) else ""
            panel = Panel(TABLES, title, unit, note + more, run=number)
            for place, name in enumerate(first):
                panel.curves.append(thin.curve(number, name, known[name], colour=place, group=name))
            panels.append(panel)
    return panels


def collapse_panels(thin: Thinned) -> list[Panel]:
    """Of the newest evaluation of each run that looked: by layer; and of its top layer, over the run."""
    rank = Panel(COLLAPSE, "Effective rank by layer", note="newest evaluation; layer 0: embedding output", x="layer")
    fields = Panel(COLLAPSE, "Attention on fields by layer", "share", "newest; faint: an even look", x="layer")
    top = Panel(COLLAPSE, "Effective rank of the top layer", note="at every evaluation that looked")
    alone = len(thin.runs) == 1
    for number, run in enumerate(thin.runs):
        looked = [(line.at, mapping(line.values.get("collapse"))) for line in run.lines.of_kind("eval")]
        looked = [(at, collapse) for at, collapse in looked if collapse]
        if not looked:
            continue
        newest = looked[-1][1]
        for place, (kind, layers) in enumerate(mapping(newest.get("effective_rank")).items()):
            look, group = thin.look(number, place), kind if alone else f"{run.name} · {kind}"
            rank.curves.append(_by_layer(number, kind, layers, 0, group, look))
            over = [(at, _top(mapping(collapse.get("effective_rank")).get(kind))) for at, collapse in looked]
            known = [(at, value) for at, value in over if value is not None]
            if len(known) > 1:
                top.curves.append(thin.points(number, kind, known, group=group, **look))
        for place, (kind, keys) in enumerate(mapping(newest.get("attention")).items()):
            look, group = thin.look(number, place), kind if alone else f"{run.name} · {kind}"
            fields.curves.append(_by_layer(number, kind, mapping(keys).get("field"), 1, group, look))
            even = mapping(mapping(newest.get("even_attention")).get(kind)).get("field")
            fields.curves.append(_by_layer(number, f"{kind}, even look", even, 1, group, look, "faint"))
    return [panel for panel in (rank, fields, top) if any(curve.at for curve in panel.curves)]


def other_panels(thin: Thinned) -> tuple[list[Panel], int]:
    """All else: one panel for what has the same first and last name (`slices.US.click.auc` and `slices.DE.click.auc`),
    or, two deep, the same first. Second: how many panels were left out."""
    panels: dict[tuple[str, str], list[tuple[int, str, Column]]] = {}
    for number, run in enumerate(thin.runs):
        for path in run.lines.columns:
            column = run.lines.column(*path)
            if path[0] not in SHOWN | NOT_SHOWN and column is not None:
                panels.setdefault(_panel_of(path), []).append((number, _name_of(path), column))
    kept = dict(list(panels.items())[:MOST_PANELS])
    return [_other(thin, key, found) for key, found in kept.items()], len(panels) - len(kept)


def _other(thin: Thinned, key: tuple[str, str], found: list[tuple[int, str, Column]]) -> Panel:
    title = " · ".join(part.replace("_", " ") for part in key if part)
    names = list(dict.fromkeys(name for _, name, _ in found))
    note = f"the first {MOST_LINES} of {len(names)}" if len(names) > MOST_LINES else ""
    last = key[1] or key[0] or ""
    unit = _unit(last if key[1] or len(names) == 1 else names[0])
    section = SPEED if unit == "rate" or last.endswith(("_seconds", "flops")) else OTHER
    panel = Panel(section, plain(title[:1].upper() + title[1:], 60), unit, note)
    for number, name, column in found:
        place = names.index(name)
        if place < MOST_LINES:
            words = name.replace("_", " ")
            group = (
                words if len(thin.runs) == 1 else f"{thin.runs[number].name}{f' · {words}' if len(names) > 1 else ''}"
            )
            look = thin.look(number, place if len(names) > 1 or len(thin.runs) > 1 else 0)
            if len(names) == 1:
                look = {"colour": number, "dash": 0}
            panel.curves.append(thin.curve(number, words, column, group=group, **look))
    return panel


def _panel_of(path: Key) -> tuple[str, str]:
    return (path[0], path[-1] if len(path) > 2 else "")


def _name_of(path: Key) -> str:
    if len(path) == 1:
        return path[0]
    return " · ".join(path[1:-1]) if len(path) > 2 else path[1]


def _unit(name: str) -> Unit:
    if name.endswith("_per_second"):
        return "rate"
    if name.endswith(("_seconds", "seconds")):
        return "seconds"
    if name.endswith(("_bytes", "bytes")):
        return "bytes"
    return "share" if name.endswith(("_share", "_ratio", "goodput")) else ""


def _by_layer(
    run: int, name: str, layers: Any, first: int, group: str, look: dict[str, Any], style: Any = "line"
) -> Curve:
    values = [_finite(value) for value in layers] if isinstance(layers, list) else []
    return Curve(run, name, list(range(first, first + len(values))), values, style=style, group=group, **look)


def _top(layers: Any) -> float | None:
    return _finite(layers[-1]) if isinstance(layers, list) and layers else None


def _finite(value: object) -> float | None:
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(np.format_float_positional(value, 6, fractional=False)) if known else None  # type: ignore[arg-type]


def _or_zero(value: float) -> float:
    return abs(value) if math.isfinite(value) else 0.0
