"""What a dashboard shows, as plain data: grafana.py makes Grafana's JSON of it, docs/plot_dashboards.py pictures.

A query may use Grafana's variables $run and $rank. Figures of the whole job are told by rank 0, those of a rank by
each.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from trainer.monitoring.promql import metrics_in

Kind = Literal["lines", "stacked", "stat", "name"]
COLUMNS = 24  # of Grafana's grid
ONCE = "max without (job, run, node)"  # a node of Ray may be found twice: by Ray's own file, and by the run's
RUN = 'run=~"$run"'
_BEFORE = {"rank": "rank ", "slowest": "rank ", "layer": "layer "}  # words that stand before a label's value
RANK = 'run=~"$run", rank=~"$rank"'


@dataclass(frozen=True)
class Query:
    """expr: PromQL. legend: Grafana's template, `{{label}}` is filled in."""

    expr: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """title: unique in its dashboard; a metric's `panel` is "Dashboard / title". says: how to read it. queries: those
    that are not made from the panel's metrics. unit: Grafana's name of one. kind: "stat" shows the newest value, "name"
    its legend. width, height: cells of a grid of 24 columns; a line that is not full is stretched. low, high: of the
    axis, where they are known.
    """

    title: str
    says: str
    queries: tuple[Query, ...] = ()
    unit: str = "short"
    kind: Kind = "lines"
    width: int = 8
    height: int = 8
    low: float | None = None
    high: float | None = None

    @property
    def metrics(self) -> frozenset[str]:
        """Names of the metrics that its queries read."""
        return frozenset().union(*(metrics_in(query.expr) for query in self.queries))


@dataclass(frozen=True)
class Dashboard:
    """rows: {heading: panels}, shown from top to bottom. Every dashboard marks where alerts fired on its time axis."""

    title: str
    says: str
    rows: dict[str, tuple[Panel, ...]] = field(default_factory=dict)

    @property
    def uid(self) -> str:
        """Of its address: stays the same when it is provisioned anew."""
        return f"tokenformer-{self.title.lower()}"

    @property
    def panels(self) -> tuple[Panel, ...]:
        """All of them, in order."""
        return tuple(panel for panels in self.rows.values() for panel in panels)


def lines_of(panels: tuple[Panel, ...]) -> list[list[tuple[Panel, int, int]]]:
    """Panels of one width side by side, about as many in every line, each line full: [[(panel, x, width)]]."""
    fit = max(1, COLUMNS // max((panel.width for panel in panels), default=COLUMNS))
    count = -(-len(panels) // fit)
    ends = [round(len(panels) * n / count) for n in range(count + 1)]
    lines = [panels[begin:end] for begin, end in pairwise(ends)]
    return [[(panel, x, width) for panel, (x, width) in zip(line, _stretched(line), strict=True)] for line in lines]


def _stretched(line: tuple[Panel, ...]) -> list[tuple[int, int]]:
    """(x, width) of each, proportional to their widths, with no column left."""
    ends, total, so_far = [0], sum(panel.width for panel in line), 0
    for panel in line:
        so_far += panel.width
        ends.append(round(COLUMNS * so_far / total))
    return [(begin, end - begin) for begin, end in pairwise(ends)]


def of_run(metric: str, *labels: str, name: str = "") -> Query:
    """A figure of the whole job: a line a run, and a value of the metric's own labels. name: what the legend says."""
    by = ", ".join(("run", *labels))
    return Query(f"max by ({by}) (tokenformer_{metric}{{{RUN}}})", _legend(name, labels))


def of_rank(metric: str, *labels: str, name: str = "") -> Query:
    """A figure that every rank tells for itself."""
    by = ", ".join(("run", "rank", *labels))
    return Query(f"max by ({by}) (tokenformer_{metric}{{{RANK}}})", _legend(name, ("rank", *labels)))


def growth(metric: str, *labels: str, name: str = "", window: str = "5m") -> Query:
    """How much a counter of the whole job grew in the time before."""
    by = ", ".join(("run", *labels))
    return Query(f"max by ({by}) (increase(tokenformer_{metric}{{{RUN}}}[{window}]))", _legend(name, labels))


def _legend(name: str, labels: tuple[str, ...]) -> str:
    shown = [f"{_BEFORE.get(label, '')}{{{{{label}}}}}" for label in labels]
    return " · ".join(["{{run}}", *shown, *([name] if name else [])])


def ray(expr: str, legend: str) -> Query:
    """Of Ray's own metrics, `{}` standing for the choice of runs: an embedded Ray's nodes carry their run's name, those
    of a shared cluster none."""
    return Query(expr.replace("{}", '{run=~"$run|"}'), legend)
