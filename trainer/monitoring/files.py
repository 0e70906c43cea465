"""What docs/generate.py writes from the tables: rules, their tests, dashboards, the runbook's generated part."""

from __future__ import annotations

from pathlib import Path

from trainer.monitoring.alerts import ALERTS, Alert
from trainer.monitoring.dashboards import dashboards
from trainer.monitoring.rules import alert_rules, alert_tests, kubernetes_rules, recording_rules


def files(root: Path) -> dict[Path, str]:
    """{file below the repository: what it should hold}. Needs grafana-foundation-sdk."""
    from trainer.monitoring.grafana import dashboard_json  # noqa: PLC0415 - a developers' dependency

    prometheus, grafana = root / "deploy" / "prometheus", root / "deploy" / "grafana" / "dashboards"
    return {
        prometheus / "rules" / "recording.yml": recording_rules(),
        prometheus / "rules" / "alerts.yml": alert_rules(),
        prometheus / "tests" / "alerts.yml": alert_tests(),
        root / "deploy" / "k8s" / "namespace" / "prometheusrule.yaml": kubernetes_rules(),
        **{grafana / f"{content.title.lower()}.json": dashboard_json(content) for content in dashboards()},
    }


def runbook() -> str:
    """The alerts, one after another, as docs/runbook.md shows them."""
    table = ["| alert | severity | holds for | metrics |", "|---|---|---|---|"]
    table += [
        f"| [{alert.name}](#{alert.anchor}) | {alert.severity} | {alert.wait} | "
        f"{', '.join(f'`{name}`' for name in sorted(alert.metrics))} |"
        for alert in ALERTS
    ]
    return "\n\n".join(["\n".join(table), *(_entry(alert) for alert in ALERTS)])


def _entry(alert: Alert) -> str:
    return (
        f"### {alert.name}\n\n**Severity:** {alert.severity}, after {alert.wait}.\n\n**Meaning:** {alert.meaning}\n\n"
        f"**First:** {alert.first}\n\n```promql\n{_folded(alert.expr)}\n```"
    )


def _folded(expr: str) -> str:
    """One clause a line."""
    for word in (" and on ", " unless on ", " or "):
        expr = expr.replace(word, f"\n{word.strip()} ")
    return expr
