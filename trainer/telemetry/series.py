"""The series of one endpoint, of declared metrics only, and never more than a Prometheus of a large job can bear."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, disable_created_metrics

from trainer.telemetry.metric import Metric
from trainer.telemetry.records import finite

log = logging.getLogger(__name__)

MAX_SERIES = 300  # of one endpoint: 512 ranks stay within what one Prometheus scrapes with ease
LEFT_OUT = "series_left_out"
Labels = tuple[str, ...]


class Series:
    """Registers the metrics. A metric that is not among them is passed over: it is another rank's to tell.

    Where the number of series is reached, those of tables give way to others, lowest value first; what still has no
    room is left out, counted in `series_left_out`, and said once.
    """

    def __init__(self, registry: CollectorRegistry, metrics: Iterable[Metric]) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # they would be one more series for every counter
        self.metrics = {metric.name: metric for metric in metrics}
        self._gauges = {name: _gauge(m, registry) for name, m in self.metrics.items() if m.kind == "gauge"}
        self._counters = {name: _counter(m, registry) for name, m in self.metrics.items() if m.kind == "counter"}
        self._totals: dict[tuple[str, Labels], float] = {}
        self._labelled: dict[str, dict[Labels, float]] = {}  # newest values of the series with labels
        self._unlabelled = sum(not metric.labels for metric in self.metrics.values())
        self._left_out: set[tuple[str, Labels]] = set()
        self.set(LEFT_OUT, 0)

    @property
    def count(self) -> int:
        """Series there are."""
        return self._unlabelled + sum(map(len, self._labelled.values()))

    def set(self, name: str, value: float | None, *labels: str) -> None:
        """A gauge. A value that is not known is NaN, Prometheus' own word for it."""
        if name not in self._gauges or not self._has_room(name, labels):
            return
        known = finite(value)
        shown = float("nan") if known is None else known
        gauge = self._gauges[name]
        (gauge.labels(*labels) if labels else gauge).set(shown)
        if labels:
            self._labelled.setdefault(name, {})[labels] = shown

    def set_all(self, name: str, values: Mapping[Labels, float | None]) -> None:
        """A gauge with labels has these series and no others; the first ones where there is no room for all."""
        for gone in self._labelled.get(name, {}).keys() - values.keys():
            self._remove(name, gone)
        for labels, value in values.items():
            self.set(name, value, *labels)

    def raise_to(self, name: str, total: float | None, *labels: str) -> None:
        """A counter. Those of the model's life begin where a checkpoint left them, and none ever falls."""
        if name not in self._counters or total is None or not self._has_room(name, labels):
            return
        before = self._totals.get((name, labels), 0.0)
        counter = self._counters[name]
        (counter.labels(*labels) if labels else counter).inc(max(0.0, total - before))
        self._totals[name, labels] = max(total, before)
        if labels:
            self._labelled.setdefault(name, {})[labels] = total

    def add(self, name: str, *labels: str) -> None:
        """A counter, one more."""
        self.raise_to(name, self._totals.get((name, labels), 0.0) + 1, *labels)

    def room_for_tables(self) -> int:
        """Series of tables that there may be, beside the others there are."""
        others = self.count - sum(len(found) for name, found in self._labelled.items() if _is_of_tables(name))
        return max(0, MAX_SERIES - others)

    def gauge(self, name: str) -> Gauge | None:
        """For a function that is asked at every scrape; None where this rank does not tell it."""
        return self._gauges.get(name)

    def _has_room(self, name: str, labels: Labels) -> bool:
        if not labels or labels in self._labelled.get(name, {}) or self.count < MAX_SERIES:
            return True
        if not _is_of_tables(name) and self._give_way():
            return True
        if not self._left_out:
            log.warning(
                "Prometheus: %s of %s would be series %d → an endpoint has at most %d → it is left out, and what comes "
                "after it; metrics.jsonl has everything",
                name, ", ".join(labels), self.count + 1, MAX_SERIES,
            )  # fmt: skip
        self._left_out.add((name, labels))
        self.set(LEFT_OUT, len(self._left_out))
        return False

    def _give_way(self) -> bool:
        """One series of tables less, of the figure that has most."""
        found = {name: series for name, series in self._labelled.items() if _is_of_tables(name) and series}
        if not found:
            return False
        name = max(found, key=lambda name: len(found[name]))
        self._remove(name, min(found[name], key=lambda labels: found[name][labels]))
        return True

    def _remove(self, name: str, labels: Labels) -> None:
        self._gauges[name].remove(*labels)
        del self._labelled[name][labels]


def _is_of_tables(name: str) -> bool:
    return name.startswith("table_")


def _help(metric: Metric) -> str:
    return f"{metric.help} ({metric.unit})" if metric.unit else metric.help


def _gauge(metric: Metric, registry: CollectorRegistry) -> Gauge:
    return Gauge(metric.full_name, _help(metric), metric.labels, registry=registry)


def _counter(metric: Metric, registry: CollectorRegistry) -> Counter:
    return Counter(metric.full_name, _help(metric), metric.labels, registry=registry)
