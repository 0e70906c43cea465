"""The tables as the files that Prometheus and promtool read."""

from __future__ import annotations

import re
from typing import Any

import yaml

from trainer.monitoring.alerts import ALERTS, Alert
from trainer.monitoring.cases import CASES, Case
from trainer.monitoring.recording import RECORDINGS

HEAD = "# Written by docs/generate.py from trainer/monitoring: change that, then `make docs`.\n"
RUNBOOK = "docs/runbook.md"


def recording_rules() -> str:
    """deploy/prometheus/rules/recording.yml."""
    return _yaml(_recording())


def alert_rules() -> str:
    """deploy/prometheus/rules/alerts.yml."""
    return _yaml(_alerts())


def kubernetes_rules() -> str:
    """deploy/k8s/namespace/prometheusrule.yaml: both, as the Prometheus operator reads them."""
    groups = [*_recording()["groups"], *_alerts()["groups"]]
    return _yaml(
        {
            "apiVersion": "monitoring.coreos.com/v1",
            "kind": "PrometheusRule",
            "metadata": {"name": "tokenformer"},
            "spec": {"groups": groups},
        }
    )


def alert_tests() -> str:
    """deploy/prometheus/tests/alerts.yml: for promtool test rules, from that folder."""
    tests = [_test(alert, case) for alert in ALERTS for case in CASES[alert.name]]
    return _yaml(
        {
            "rule_files": ["../rules/recording.yml", "../rules/alerts.yml"],
            "evaluation_interval": "2m",
            "tests": tests,
        }
    )


def _recording() -> dict[str, Any]:
    rules = [{"record": rule.name, "expr": rule.expr} for rule in RECORDINGS]
    return {"groups": [{"name": "tokenformer-recorded", "rules": rules}]}


def _alerts() -> dict[str, Any]:
    return {"groups": [{"name": "tokenformer", "rules": [_rule(alert) for alert in ALERTS]}]}


def told(alert: Alert) -> dict[str, str]:
    """What Alertmanager shows beside the labels."""
    return {
        "summary": alert.summary,
        "meaning": _plain(alert.meaning),
        "first_action": _plain(alert.first),
        "runbook": f"{RUNBOOK}#{alert.anchor}",
    }


def _rule(alert: Alert) -> dict[str, Any]:
    return {
        "alert": alert.name,
        "expr": alert.expr,
        "for": alert.wait,
        "labels": {"severity": alert.severity},
        "annotations": told(alert),
    }


def _test(alert: Alert, case: Case) -> dict[str, Any]:
    expected = [
        {
            "exp_labels": {"severity": alert.severity, **labels},
            "exp_annotations": told(alert) | {"summary": summary},
        }
        for labels, summary in case.fires
    ]
    return {
        "name": f"{alert.name}: {case.what}",
        "interval": "1m",
        "input_series": [{"series": series, "values": values} for series, values in case.series.items()],
        "alert_rule_test": [{"eval_time": case.at, "alertname": alert.name, "exp_alerts": expected}],
    }


def _plain(text: str) -> str:
    """Without links and code marks: a message is no page."""
    return re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text).replace("`", "")


def _yaml(content: Any) -> str:
    text: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=10_000)
    return HEAD + text
