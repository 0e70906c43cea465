"""The dashboards, complete: what content_*.py lays out, with the queries of the declared metrics filled in."""

from __future__ import annotations

from dataclasses import replace

from trainer.monitoring.content_data import DATA
from trainer.monitoring.content_system import SYSTEM
from trainer.monitoring.content_tables import TABLES
from trainer.monitoring.content_training import TRAINING
from trainer.monitoring.panels import Dashboard, Panel, Query, growth, of_rank, of_run
from trainer.telemetry.declared import METRICS, Metric

LAID_OUT = (TRAINING, DATA, TABLES, SYSTEM)


def dashboards(metrics: tuple[Metric, ...] = METRICS) -> tuple[Dashboard, ...]:
    """Every declared metric in its panel; a panel that is laid out nowhere stands at the end of its dashboard. Raises
    ValueError: a metric names a dashboard that there is not, or a panel has nothing to show."""
    unknown = {metric.name for metric in metrics} - {m.name for m in metrics if m.dashboard in _titles(LAID_OUT)}
    if unknown:
        raise ValueError(f"panels of {sorted(unknown)} → the dashboards are {', '.join(_titles(LAID_OUT))}")
    return tuple(_complete(laid_out, metrics) for laid_out in LAID_OUT)


def _complete(laid_out: Dashboard, metrics: tuple[Metric, ...]) -> Dashboard:
    rows = dict(laid_out.rows)
    known = {f"{laid_out.title} / {panel.title}" for panel in laid_out.panels}
    more = {m.panel: m for m in reversed(metrics) if m.dashboard == laid_out.title and m.panel not in known}
    if more:
        rows["More"] = tuple(_plain(m) for m in reversed(more.values()))
    filled = {
        heading: tuple(_filled(panel, f"{laid_out.title} / {panel.title}", metrics) for panel in panels)
        for heading, panels in rows.items()
    }
    return replace(laid_out, rows=filled)


def _plain(metric: Metric) -> Panel:
    title = metric.panel.partition(" / ")[2]
    return Panel(title, f"{metric.help}.", unit={"seconds": "s", "bytes": "bytes"}.get(metric.unit, "short"))


def _titles(laid_out: tuple[Dashboard, ...]) -> tuple[str, ...]:
    return tuple(dashboard.title for dashboard in laid_out)


def _filled(panel: Panel, place: str, metrics: tuple[Metric, ...]) -> Panel:
    own = [m for m in metrics if m.panel == place]
    names = _short([m.name.removesuffix("_total") for m in own])
    missing = [(m, name) for m, name in zip(own, names, strict=True) if m.full_name not in panel.metrics]
    queries = panel.queries + tuple(_query(m, name) for m, name in missing)
    if not queries:
        raise ValueError(f"{place} shows nothing: no declared metric names it, and it has no query")
    return replace(panel, queries=queries)


def _query(metric: Metric, name: str) -> Query:
    """Counters as what they grew by."""
    labels = [label for label in metric.labels if label not in ("run", "rank")]
    if metric.kind == "counter":
        return growth(metric.name, *labels, name=name)
    return (of_rank if metric.scope == "rank" else of_run)(metric.name, *labels, name=name)


def _short(names: list[str]) -> list[str]:
    """What tells the metrics of one panel apart: their names without the words they all begin or end with. "all" where
    nothing is left of one, "" for a single one."""
    if len(names) == 1:
        return [""]
    words = [name.split("_") for name in names]
    first = _common(words)
    last = _common([w[first:][::-1] for w in words])
    return [" ".join(w[first : len(w) - last]) or "all" for w in words]


def _common(words: list[list[str]]) -> int:
    """How many words all of them begin with."""
    return next(
        (n for n, column in enumerate(zip(*words, strict=False)) if len(set(column)) > 1),
        min(map(len, words), default=0),
    )
