"""A real Prometheus watches a real run: it is found by its service-discovery file, what was scraped is what
metrics.jsonl says, and the rules and dashboards work on it. (Two ranks in one file: tests/trainer/test_fleet.py.)"""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.ranks import run_ranks
from tests.monitoring.programs import PROMETHEUS, ROOT, Api, prometheus
from tests.pipelines.rows import write_segments
from tests.trainer.runs import tiny_config
from trainer.config import Config
from trainer.job import Job
from trainer.monitoring.dashboards import dashboards
from trainer.monitoring.recording import RECORDINGS
from trainer.run_dir import RunDir
from trainer.telemetry.declared import METRICS
from trainer.worker import run_worker

pytestmark = pytest.mark.timeout(150)
HELD_AT = 13  # calls after which the run waits until Prometheus has seen it; it logs every 4 steps
RUN = "watched"


class UntilSeen:
    """In the place of a request to stop, which is asked for at every step: lets the run go on past HELD_AT when
    Prometheus has scraped it, and its first log."""

    def __init__(self, api: Api) -> None:
        self._api, self._calls = api, 0

    def requested(self) -> bool:
        self._calls += 1
        if self._calls == HELD_AT:
            self._api.until("the run is scraped", self._seen, seconds=60)
        return False

    def _seen(self) -> bool:
        return bool(self._api.values("tokenformer_loss > 0"))


def _in_rank(rank: int, world_size: int, config: Config, path: Path, url: str) -> None:
    run_worker(Job(config, str(path), UntilSeen(Api(url)), "never", threads=1))


def _own_configuration(folder: Path) -> Path:
    """Ours as it is, in a folder like the repository, but for scraping every half second."""
    ours = folder / "deploy" / "prometheus"
    shutil.copytree(PROMETHEUS, ours)
    text = (ours / "prometheus.yml").read_text(encoding="utf-8")
    assert text.count(": 15s") == 2
    (ours / "prometheus.yml").write_text(text.replace(": 15s", ": 500ms").replace(": 10s", ": 500ms"))
    return ours / "prometheus.yml"


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("monitored")
    rows = write_segments(folder / "rows", {"2026-01-01": [65], "2026-01-02": [40]})
    config = tiny_config(rows, train={"log_every": 4})
    watch = config.telemetry.model_copy(update={"prometheus": True, "linger_seconds": 30.0, "tables_every": 4})
    config = replace(config, telemetry=watch)
    run = folder / "runs" / RUN
    RunDir(run).prepare("never")
    targets = folder / "runs" / ".monitor" / "targets"
    targets.mkdir(parents=True)
    copying = subprocess.Popen([str(ROOT / "deploy/monitor/targets.sh"), str(folder / "runs"), str(targets), "0.2"])
    try:
        with prometheus(_own_configuration(folder), folder) as api:
            run_ranks(_in_rank, 1, config, run, api.url, timeout=140)
            api.until("the targets of a run that ended are gone", lambda: not list(targets.glob("*.json")))
            yield {"api": api, "lines": [json.loads(line) for line in (run / "metrics.jsonl").open()]}
    finally:
        copying.terminate()
        copying.wait()


def _scraped(api: Api, metric: str, **labels: str) -> list[float]:
    """Every value that one series had, NaN left out, in their order."""
    chosen = ",".join(f'{name}="{value}"' for name, value in labels.items())
    (series,) = api.ask("query", query=f"{metric}{{{chosen}}}[1h]")["result"]
    values = [float(value) for _, value in series["values"] if value != "NaN"]
    return [value for n, value in enumerate(values) if n == 0 or value != values[n - 1]]


def test_throughput_loss_and_auc_agree_with_metrics_jsonl(watched: dict[str, Any]) -> None:
    api = watched["api"]
    train = [line for line in watched["lines"] if line["kind"] == "train"]
    assert len(train) >= 5
    figures = {
        "tokenformer_loss": [line["loss"] for line in train],
        "tokenformer_examples_per_second": [line["examples_per_second"] for line in train],
        "tokenformer_rows_per_second": [line["rows_per_second"] for line in train],
    }
    for metric, told in figures.items():
        scraped = _scraped(api, metric, run=RUN, rank="0")
        assert len(scraped) >= 2, metric
        assert set(scraped) <= set(told), metric
        assert scraped[-1] == told[-1], f"{metric}: the final values are scraped"
    task = next(iter(train[0]["tasks"]))
    auc = [line["tasks"][task]["auc"] for line in train]
    scraped = _scraped(api, "tokenformer_train_auc", run=RUN, rank="0", task=task)
    assert set(scraped) <= set(auc)
    assert scraped[-1] == [value for value in auc if value is not None][-1]
    assert _scraped(api, "tokenformer_examples_total", run=RUN)[-1] == train[-1]["examples"]
    assert _scraped(api, "tokenformer_steps_total", run=RUN, rank="0")[-1] == train[-1]["step"]


def test_what_is_scraped_is_declared_and_the_rules_work_on_it(watched: dict[str, Any]) -> None:
    api = watched["api"]
    names = {name for name in api.ask("label/__name__/values") if name.startswith("tokenformer_")}
    declared = {metric.full_name for metric in METRICS}
    # prometheus_client tells of every counter when it was made.
    assert {name for name in names - declared if not name.endswith("_created")} == set()
    groups = api.ask("rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) > 20
    assert [(rule["name"], rule.get("lastError")) for rule in rules if rule["health"] == "err"] == []
    recorded = {rule.name for rule in RECORDINGS}
    with_data = {name for name in recorded if api.values(f'last_over_time({name}{{run="{RUN}"}}[1h])')}
    assert recorded - with_data <= {"run:tokenformer_slowest_rank:ratio"}
    assert api.values('ALERTS{alertstate="firing"}') == []


def test_dashboards_show_the_run(watched: dict[str, Any]) -> None:
    """Every panel but those of what this run has not: Ray, slices, an evaluation."""
    api, empty = watched["api"], set()
    newest = max(float(value) for _, value in api.values("max(timestamp(last_over_time(tokenformer_loss[1h])))"))
    last = max(
        when for series in api.ask("query", query="tokenformer_loss[1h]")["result"] for when, _ in series["values"]
    )
    assert newest >= last
    for content in dashboards():
        for panel in content.panels:
            exprs = [query.expr.replace("$run", RUN).replace("$rank", ".*") for query in panel.queries]
            if not any(api.values(expr, time=last) for expr in exprs):
                empty.add(panel.title)
    assert {title for title in empty if "Ray" not in title and "by slice" not in title} <= {
        "Alerts firing",
        "Evaluation NE",
        "Evaluation AUC",
        "Evaluation calibration",
        "Evaluation loss",
        "Effective rank",
        "Attention on fields",
    }
