"""Dashboards as Grafana reads them, built with Grafana's own SDK. Panels are placed row by row on its grid."""

from __future__ import annotations

import json
from collections.abc import Iterator

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders import prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common, dashboard

from trainer.monitoring.panels import COLUMNS, Dashboard, Panel, lines_of

SOURCE = dashboard.DataSourceRef(type_val="prometheus", uid="${datasource}")
TAG = "tokenformer"
INSTANT = ("stat", "name")


def dashboard_json(content: Dashboard) -> str:
    """The file that Grafana provisions."""
    made = (
        builders.Dashboard(content.title)
        .uid(content.uid)
        .description(content.says)
        .tags([TAG])
        .time("now-6h", "now")
        .refresh("30s")
        .timezone("browser")
        .tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
        .readonly()
        .variables([_datasource(), _run(), _rank()])
        .annotation(_alerts())
        .link(
            builders.DashboardLink("tokenformer")
            .type(dashboard.DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .as_dropdown(False)
            .include_vars(True)
            .keep_time(True)
        )
        .build()
    )
    made.panels = list(_placed(content))
    return json.dumps(made, cls=JSONEncoder, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _placed(content: Dashboard) -> Iterator[dashboard.Panel | dashboard.RowPanel]:
    """A heading, then its panels from left to right; lines are as wide as the page and as high as their highest."""
    number, y = 0, 0
    for heading, panels in content.rows.items():
        number += 1
        yield builders.Row(heading).id(number).grid_pos(dashboard.GridPos(x=0, y=y, w=COLUMNS, h=1)).build()
        y += 1
        for line in lines_of(panels):
            for panel, x, width in line:
                number += 1
                yield _panel(panel, number, dashboard.GridPos(x=x, y=y, w=width, h=panel.height))
            y += max(panel.height for panel, _, _ in line)


def _panel(panel: Panel, number: int, place: dashboard.GridPos) -> dashboard.Panel:
    made = _stat(panel.kind == "name") if panel.kind in INSTANT else _lines(stacked=panel.kind == "stacked")
    made = (
        made.id(number).title(panel.title).description(panel.says).unit(panel.unit).grid_pos(place).datasource(SOURCE)
    )
    if panel.low is not None:
        made = made.min(panel.low)
    if panel.high is not None:
        made = made.max(panel.high)
    for letter, query in zip("ABCDEFGHIJKLMNOP", panel.queries, strict=False):
        target = prometheus.Dataquery().expr(query.expr).legend_format(query.legend).ref_id(letter).datasource(SOURCE)
        made = made.with_target(target.instant() if panel.kind in INSTANT else target.range())
    return made.build()


def _lines(stacked: bool) -> timeseries.Panel:
    """Lines, or areas on each other. What is unknown is a gap."""
    table = common_builders.VizLegendOptions().show_legend(True).placement(common.LegendPlacement.BOTTOM)
    made = (
        timeseries.Panel()
        .legend(table.display_mode(common.LegendDisplayMode.LIST).calcs(["lastNotNull"]))
        .tooltip(common_builders.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI))
        .line_width(1)
        .show_points(common.VisibilityMode.AUTO)
    )
    if stacked:
        stacking = common_builders.StackingConfig().mode(common.StackingMode.NORMAL)
        made = made.stacking(stacking).fill_opacity(40).min(0)
    return made


def _stat(names: bool) -> stat.Panel:
    """The newest value, or what the legend says of it, in large letters."""
    return (
        stat.Panel()
        .reduce_options(common_builders.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
        .graph_mode(common.BigValueGraphMode.NONE)
        .color_mode(common.BigValueColorMode.NONE)
        .text_mode(common.BigValueTextMode.NAME if names else common.BigValueTextMode.AUTO)
    )


def _datasource() -> builders.DatasourceVariable:
    return builders.DatasourceVariable("datasource").label("Prometheus").type("prometheus")


def _run() -> builders.QueryVariable:
    return _labels("run", "label_values(tokenformer_info, run)").label("Run")


def _rank() -> builders.QueryVariable:
    return _labels("rank", 'label_values(tokenformer_info{run=~"$run"}, rank)').label("Rank")


def _labels(name: str, query: str) -> builders.QueryVariable:
    """Read anew when the time range changes; all of them to begin with."""
    return (
        builders.QueryVariable(name)
        .datasource(SOURCE)
        .query({"query": query, "refId": name, "qryType": 5})
        .refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(dashboard.VariableSort.NUMERICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(dashboard.VariableOption(selected=True, text="All", value="$__all"))
    )


def _alerts() -> builders.AnnotationQuery:
    """Where an alert of ours fired for the chosen runs."""
    return (
        builders.AnnotationQuery()
        .name("Alerts")
        .datasource(SOURCE)
        .enable(True)
        .icon_color("red")
        .expr('ALERTS{alertname=~"Tokenformer.*", alertstate="firing", run=~"$run"}')
    )
