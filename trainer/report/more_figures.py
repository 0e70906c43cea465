"""Curves that only some runs have: health of tables, and collapse."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from trainer.report.figures import Curve, Panel, Thinned, Unit
from trainer.report.learning import mapping

TABLES, COLLAPSE = "Tables", "Collapse"
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
