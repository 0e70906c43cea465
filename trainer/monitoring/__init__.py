"""What watches a run, declared in code: alerts, recording rules, dashboards. docs/generate.py writes deploy/ and the
runbook from it; nothing here runs while training."""
