"""What is told of the tables' health: the line's values, the series that are exported, and what is worth a warning."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from embeddings.health import TableFigures
from trainer.telemetry.declared import TABLE_FIGURES

log = logging.getLogger(__name__)

SHOWN = 12  # tables whose series are exported, of each figure
NAMED = 5  # tables that are named one by one, in warnings and at the end
# From here on a figure is worth saying. Of a managed table ids that are not admitted yet are unknown by intent, and one
# that evicts is meant to be full.
BOUNDS = {"fill": 0.9, "unknown_rate": 0.1, "collision_rate": 0.2}
UNKNOWN_OF_MANAGED = 0.5


def table_lines(tables: Mapping[str, TableFigures]) -> dict[str, dict[str, float | None]]:
    """For metrics.jsonl: four digits."""
    return {name: {key: _short(getattr(of, key)) for key in TABLE_FIGURES} for name, of in tables.items()}


def highest(tables: Mapping[str, TableFigures], figure: str, most: int = SHOWN) -> dict[str, float]:
    """{table: value} of those where the figure is highest, at most `most`; tables where it is not defined are left
    out."""
    found = {name: float(value) for name, of in tables.items() if (value := getattr(of, figure)) is not None}
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0]))[:most])


def beyond(of: TableFigures) -> list[str]:
    """Figures of a table that are worth saying."""
    bounds = dict(BOUNDS)
    if of.mapping == "managed":
        bounds["unknown_rate"] = UNKNOWN_OF_MANAGED
        if of.evicts:
            del bounds["fill"]
    return [key for key, bound in bounds.items() if (value := getattr(of, key)) is not None and value >= bound]


def worth_saying(tables: Mapping[str, TableFigures]) -> dict[str, dict[str, float | None]]:
    """The tables that the closing words show: those beyond a bound, the furthest first."""

    def worst(name: str) -> float:
        return max(float(getattr(tables[name], key)) / BOUNDS[key] for key in beyond(tables[name]))

    found = sorted((name for name, of in tables.items() if beyond(of)), key=lambda name: (-worst(name), name))
    return table_lines({name: tables[name] for name in found[:NAMED]})


class TableWatch:
    """Warns once of each table and figure, when it is beyond its bound in two samples one after the other: the first
    steps of a model are like no others."""

    def __init__(self) -> None:
        self._before: set[tuple[str, str]] = set()
        self._warned: set[tuple[str, str]] = set()

    def look(self, tables: Mapping[str, TableFigures], step: int) -> None:
        """At every sample."""
        now = {(name, key) for name, of in tables.items() for key in beyond(of)}
        new = sorted(now & self._before - self._warned)
        self._before = now
        self._warned |= set(new)
        for figure in BOUNDS:
            names = [name for name, key in new if key == figure]
            for name in names[:NAMED]:
                log.warning("step %d: %s", step, _warning(name, figure, tables[name]))
            if len(names) > NAMED:
                more = ", ".join(names[NAMED : NAMED + SHOWN]) + (" …" if len(names) > NAMED + SHOWN else "")
                log.warning("step %d: the same is so of %d more of the tables: %s", step, len(names) - NAMED, more)


def _warning(name: str, figure: str, of: TableFigures) -> str:
    share = f"{100 * getattr(of, figure):.0f} %"
    if figure == "fill":
        return (
            f"table '{name}' has {share} of its rows in use → ids that come when it is full get the unknown row → more "
            "rows (fixed at birth), mapping = 'managed', or 'hash'"
        )
    if figure == "collision_rate":
        return (
            f"table '{name}': {share} of a batch's ids share their row with another one of it → they learn one vector "
            "→ more rows, or mapping = 'vocabulary' or 'managed'"
        )
    remedy = {
        "identity": "more rows, or mapping = 'hash'",
        "managed": "more rows, or a lower admit_after",
    }.get(of.mapping, "more rows (fixed at birth), mapping = 'managed', or 'hash'")
    return f"table '{name}': {share} of its ids' occurrences are of unknown ids → they learn one vector → {remedy}"


def _short(value: float | int | None) -> float | int | None:
    return float(f"{value:.4g}") if isinstance(value, float) else value
