"""Dashboards: Grafana's own types read them, panels stand where there is room, every declared metric is shown, every
query is one that a real Prometheus answers."""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard as GrafanaDashboard

from tests.monitoring.programs import ROOT, prometheus
from trainer.monitoring.dashboards import dashboards
from trainer.monitoring.panels import COLUMNS
from trainer.monitoring.promql import metrics_in
from trainer.monitoring.ray_metrics import RAY_METRICS
from trainer.telemetry.declared import DASHBOARDS, METRICS, Metric

FILES = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in ROOT.glob("deploy/grafana/dashboards/*")}
DECLARED = {metric.full_name: metric for metric in METRICS}
SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def expressions(dashboard: dict[str, Any]) -> list[str]:
    """As Grafana asks them with everything chosen."""
    found = [target["expr"] for panel in panels(dashboard) for target in panel["targets"]]
    found += [annotation["expr"] for annotation in dashboard["annotations"]["list"]]
    return [expr.replace("$run", ".*").replace("$rank", ".*") for expr in found]


def test_grafanas_own_types_read_the_files_and_write_them_again() -> None:
    register_default_plugins()
    assert FILES.keys() == {title.lower() for title in DASHBOARDS}
    for content in FILES.values():
        again = json.loads(json.dumps(GrafanaDashboard.from_json(content), cls=JSONEncoder))
        assert again == content


@pytest.mark.parametrize("name", FILES)
def test_a_dashboard_is_complete_and_nothing_overlaps(name: str) -> None:
    content = FILES[name]
    assert content["uid"] == f"tokenformer-{name}"
    assert content["schemaVersion"] >= 36
    assert [variable["name"] for variable in content["templating"]["list"]] == ["datasource", "run", "rank"]
    assert all(variable["multi"] and variable["includeAll"] for variable in content["templating"]["list"][1:])
    ids = [panel["id"] for panel in content["panels"]]
    assert sorted(ids) == list(range(1, len(ids) + 1))
    titles = [panel["title"] for panel in panels(content)]
    assert len(set(titles)) == len(titles)
    cells = {panel["id"]: panel["gridPos"] for panel in content["panels"]}
    for place in cells.values():
        assert 0 <= place["x"] < place["x"] + place["w"] <= COLUMNS
    for one, other in combinations(cells.values(), 2):
        apart = (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
        assert apart, (one, other)
    for panel in panels(content):
        assert panel["datasource"] == SOURCE
        assert panel["description"]
        assert [target["datasource"] for target in panel["targets"]] == [SOURCE] * len(panel["targets"])
        refs = [target["refId"] for target in panel["targets"]]
        assert refs
        assert len(set(refs)) == len(refs)


def test_every_declared_metric_is_shown_where_it_says_and_nothing_else_is_asked_for() -> None:
    shown: dict[str, set[str]] = {}
    for content in FILES.values():
        for panel in panels(content):
            place = f"{content['title']} / {panel['title']}"
            shown[place] = set().union(*(metrics_in(target["expr"]) for target in panel["targets"]))
    assert [m.full_name for m in METRICS if m.full_name not in shown.get(m.panel, ())] == []
    read = set().union(*shown.values())
    assert read - DECLARED.keys() - RAY_METRICS.keys() == set()
    assert RAY_METRICS.keys() <= read


def test_rays_metrics_are_those_of_rays_own_dashboards() -> None:
    (folder,) = importlib.util.find_spec("ray").submodule_search_locations  # type: ignore[union-attr, misc]
    own = "".join(path.read_text() for path in Path(folder).glob("dashboard/modules/metrics/dashboards/*_panels.py"))
    assert {name for name in RAY_METRICS if not re.search(rf"\b{name}\b", own)} == set()


def test_a_metric_that_comes_later_finds_its_place() -> None:
    new = Metric("novelty_share", "Ids never seen before", "Data / Novelty", labels=("table",))
    rank = Metric("novel_bytes", "Of a rank", "Data / Queues", scope="rank")
    data = next(content for content in dashboards((*METRICS, new, rank)) if content.title == "Data")
    assert [panel.title for panel in data.rows["More"]] == ["Novelty"]
    assert data.rows["More"][0].queries[0].expr == 'max by (run, table) (tokenformer_novelty_share{run=~"$run"})'
    queues = next(panel for panel in data.panels if panel.title == "Queues")
    assert queues.queries[-1].expr == 'max by (run, rank) (tokenformer_novel_bytes{run=~"$run", rank=~"$rank"})'
    with pytest.raises(ValueError, match="novelty_share"):
        dashboards((*METRICS, replace(new, panel="Nowhere / Novelty")))


@pytest.mark.timeout(60)
def test_a_real_prometheus_answers_every_query(tmp_path: Path) -> None:
    config = tmp_path / "prometheus.yml"
    config.write_text("scrape_configs: []\n")
    with prometheus(config, tmp_path) as api:
        for content in FILES.values():
            for expr in expressions(content):
                api.values(expr)
        with pytest.raises(ValueError, match="parse error"):
            api.values("max by (run (a_b)")


def test_what_grafana_is_provisioned_with() -> None:
    folder = ROOT / "deploy" / "grafana" / "provisioning"
    source = yaml.safe_load((folder / "datasources" / "prometheus.yml").read_text(encoding="utf-8"))["datasources"][0]
    assert (source["type"], source["url"], source["isDefault"]) == ("prometheus", "$PROMETHEUS_URL", True)
    provider = yaml.safe_load((folder / "dashboards" / "tokenformer.yml").read_text(encoding="utf-8"))["providers"][0]
    assert provider["options"]["path"] == "$DASHBOARDS"
