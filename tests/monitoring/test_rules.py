"""Alerts: promtool accepts them, each fires where it should and keeps still where it should, each is explained."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from tests.monitoring.programs import PROMETHEUS, ROOT, program, said
from trainer.monitoring.alerts import ALERTS
from trainer.monitoring.cases import CASES
from trainer.monitoring.dashboards import dashboards
from trainer.monitoring.promql import metrics_in
from trainer.monitoring.recording import RECORDINGS
from trainer.telemetry.declared import METRICS

DECLARED = {metric.full_name: metric for metric in METRICS}
RULES = sorted((PROMETHEUS / "rules").glob("*.yml"))


def test_promtool_accepts_the_configuration_and_the_rules() -> None:
    promtool = program("promtool", "prometheus")
    assert f"{len(ALERTS)} rules found" in said(promtool, "check", "rules", PROMETHEUS / "rules" / "alerts.yml")
    assert "SUCCESS" in said(promtool, "check", "rules", *RULES)
    assert "is valid" in said(promtool, "check", "config", PROMETHEUS / "prometheus.yml")


@pytest.mark.timeout(120)
def test_every_alert_fires_and_keeps_still_in_promtool() -> None:
    tests = PROMETHEUS / "tests" / "alerts.yml"
    assert "SUCCESS" in said(program("promtool", "prometheus"), "test", "rules", tests)
    # The file has all the cases, and the cases have both kinds for every alert.
    tested = [test["name"].split(":")[0] for test in yaml.safe_load(tests.read_text(encoding="utf-8"))["tests"]]
    assert tested == [alert.name for alert in ALERTS for _ in CASES[alert.name]]
    assert CASES.keys() == {alert.name for alert in ALERTS}
    for name, cases in CASES.items():
        assert {bool(case.fires) for case in cases} == {True, False}, name


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_threshold_that_moved_is_noticed(tmp_path: Path) -> None:
    """The tests above are worth something: with every comparison turned round, they fail for every alert."""
    promtool = program("promtool", "prometheus")
    rules = yaml.safe_load((PROMETHEUS / "rules" / "alerts.yml").read_text(encoding="utf-8"))
    for rule in rules["groups"][0]["rules"]:
        rule["expr"] = rule["expr"].translate(str.maketrans("<>", "><")).replace("== 0", "== 7").replace("!=", "==")
    (tmp_path / "rules").mkdir()
    (tmp_path / "tests").mkdir()
    (tmp_path / "rules" / "alerts.yml").write_text(yaml.safe_dump(rules))
    (tmp_path / "rules" / "recording.yml").write_text((PROMETHEUS / "rules" / "recording.yml").read_text())
    (tmp_path / "tests" / "alerts.yml").write_text((PROMETHEUS / "tests" / "alerts.yml").read_text())
    with pytest.raises(AssertionError) as failed:
        said(promtool, "test", "rules", tmp_path / "tests" / "alerts.yml")
    assert {alert.name for alert in ALERTS if f"alertname: {alert.name}" not in str(failed.value)} == set()


def test_alerts_and_metrics_name_each_other() -> None:
    read = {name for alert in ALERTS for name in alert.metrics} | {name for rule in RECORDINGS for name in rule.metrics}
    assert read - DECLARED.keys() == {"up"}  # Prometheus' own: whether a target answers
    by_name = {alert.name: alert for alert in ALERTS}
    assert len(by_name) == len(ALERTS)
    looked_at = {metric.alert: metric.full_name for metric in METRICS if metric.alert}
    assert looked_at.keys() == by_name.keys()
    assert [m.name for m in METRICS if m.alert and m.full_name not in by_name[m.alert].metrics] == []
    recorded = {rule.name for rule in RECORDINGS}
    used = {name for alert in ALERTS for name in metrics_in(alert.expr) if ":" in name}
    assert used == recorded


def test_panels_that_the_runbook_names_are_there() -> None:
    titles = {panel.title for dashboard in dashboards() for panel in dashboard.panels}
    page = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
    named = set(re.findall(r"(?<![*\w])\*([A-Z][^*\n]+)\*(?!\*)", page))
    assert len(named) > 8
    assert named - titles == set()


def test_metrics_of_an_expression() -> None:
    assert metrics_in('max by (run) (a_b{run=~"c_d", rank="0"}) / on (run_x) group_left (e_f) rate(g_h_total[5m])') == {
        "a_b",
        "g_h_total",
    }
    assert metrics_in('count by (run) (up{job="x"} == 0) or run:loss:max offset 5m > 0.5') == {"up", "run:loss:max"}


def test_the_runbook_and_alertmanager_speak_of_every_alert() -> None:
    page = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
    for alert in ALERTS:
        section = page.split(f"### {alert.name}\n")[1].split("\n### ")[0]
        for words in (f"**Severity:** {alert.severity}", alert.meaning, alert.first, "```promql"):
            assert words in section
    config = ROOT / "deploy" / "alertmanager" / "alertmanager.yml"
    assert "SUCCESS" in said(program("amtool", "prometheus-alertmanager"), "check-config", config)
    inhibited = json.dumps(yaml.safe_load(config.read_text(encoding="utf-8"))["inhibit_rules"])
    named = {word for word in inhibited.replace("|", '"').replace("\\", '"').split('"') if word.startswith("Tokenf")}
    assert named - {alert.name for alert in ALERTS} == set()
    assert len(named) > 5
