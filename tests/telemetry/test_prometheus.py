"""The endpoint: a real scrape has every declared metric, with its labels, and nothing else."""

from __future__ import annotations

import math
import socket
import threading
import time
from dataclasses import replace

import pytest

from tests.telemetry.test_telemetry import COLLAPSE, EVAL, ITEM, ONE_CLASS, THROUGH, TRAIN, _scrape
from trainer.config_sections import Telemetry as TelemetryConfig
from trainer.errors import ConfigError
from trainer.telemetry.declared import DASHBOARDS, METRICS, Metric
from trainer.telemetry.goodput import CAUSES, Goodput
from trainer.telemetry.prometheus import Prometheus

LABELS = {"task", "split", "rank", "name", "table", "part", "tokens", "queries", "layer", "cause", "device", "slice"}
LABELS |= {"slowest", "host", "version", "commit", "torch", "torchrec", "ray", "python"}


def _tell_everything(endpoint: Prometheus) -> None:
    endpoint.train(replace(TRAIN, slices={"de": {"click": ONE_CLASS}}))
    endpoint.train(replace(TRAIN, step=420, loss=float("inf"), tasks={"click": ONE_CLASS}, tables={"item": ITEM}))
    endpoint.eval(replace(EVAL, collapse=COLLAPSE))
    endpoint.checkpoint(400, 12_345, 2.5)
    endpoint.event("segment")


def test_every_declared_metric_is_served_with_its_labels_and_nothing_else() -> None:
    endpoint = Prometheus(TelemetryConfig(), rank=0, tasks=["click"])
    try:
        assert endpoint.url.startswith("http://127.0.0.1:")
        before = _scrape(endpoint.url)
        assert math.isnan(before["tokenformer_train_ne", (("task", "click"),)])
        _tell_everything(endpoint)
        found = _scrape(endpoint.url)
    finally:
        endpoint.close()
        endpoint.close()
    assert {(name, tuple(label for label, _ in labels)) for name, labels in found} == {
        (metric.full_name, tuple(sorted(metric.labels))) for metric in METRICS
    }
    assert found["tokenformer_info", (("rank", "0"),)] == 1
    assert found["tokenformer_steps_total", ()] == 420
    assert found["tokenformer_examples_total", ()] == 51_200
    assert found["tokenformer_flops_per_second", ()] == 2.5e9
    assert found["tokenformer_mfu", ()] == 0.031
    assert math.isnan(found["tokenformer_loss", ()])
    assert math.isnan(found["tokenformer_train_auc", (("task", "click"),)])
    assert found["tokenformer_data_through_timestamp_seconds", ()] == THROUGH / 1e6
    assert found["tokenformer_eval_gauc", (("split", "dt=2026-11-21"), ("task", "click"))] == 0.7021
    assert found["tokenformer_effective_rank", (("layer", "1"), ("tokens", "sequence"))] == 2.5
    assert found["tokenformer_attention_on_fields", (("layer", "1"), ("queries", "sequence"))] == 0.25
    assert found["tokenformer_checkpoint_bytes", ()] == 12_345
    assert 2.5 <= found["tokenformer_checkpoint_age_seconds", ()] < 30
    assert found["tokenformer_data_lag_seconds", ()] == pytest.approx(time.time() - THROUGH / 1e6, abs=30)
    assert found["tokenformer_step_part_seconds", (("part", "forward"),)] == 0.0653
    assert found["tokenformer_goodput", ()] == 0.8
    assert found["tokenformer_restarts_total", ()] == 2
    assert found["tokenformer_lost_seconds", (("cause", "down"),)] == 2.5
    assert found["tokenformer_slowest_rank_step_seconds", (("host", "node-7"), ("slowest", "3"))] == 0.05
    with pytest.raises(OSError):
        _scrape(endpoint.url)


def test_other_ranks_tell_only_what_is_their_own() -> None:
    endpoint = Prometheus(TelemetryConfig(), rank=511, tasks=["click"])
    try:
        _tell_everything(endpoint)
        found = _scrape(endpoint.url)
    finally:
        endpoint.close()
    assert {name for name, _ in found} == {metric.full_name for metric in METRICS if metric.scope == "rank"}
    assert found["tokenformer_steps_total", ()] == 420


def test_declared_metrics_follow_the_rules() -> None:
    names = [metric.full_name for metric in METRICS]
    assert len(set(names)) == len(names)
    for metric in METRICS:
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric
        assert set(metric.labels) <= LABELS, metric
        assert metric.scope in ("rank", "job"), metric
        assert metric.dashboard in DASHBOARDS, metric
        assert metric.panel.count(" / ") == 1, metric
        assert metric.alert == "" or metric.alert.startswith("Tokenformer"), metric
        assert len(metric.labels) <= 1 or not metric.field, metric
    assert Metric("worker_seconds_total", "", "").unit == "seconds"
    assert Metric("examples_per_second", "", "").unit == ""
    for metric in METRICS:  # what a metric shows is there
        head = metric.field.split(".")[0]
        assert not head or hasattr(TRAIN, head), metric


def test_a_taken_port_is_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError) as error:
            Prometheus(TelemetryConfig(port=port), rank=0, tasks=[])
        with pytest.raises(ConfigError, match=rf"rank 2 cannot listen on 127.0.0.1:{port} "):
            Prometheus(TelemetryConfig(port=port - 2), rank=2, tasks=[])
    (line,) = error.value.problems
    assert line.startswith(
        f"telemetry.port {port}: rank 0 cannot listen on 127.0.0.1:{port} (Address already in use) → "
    )
    assert line.count(" → ") == 2
    assert "\n" not in line
    with pytest.raises(ConfigError, match="ports end at 65535"):
        Prometheus(TelemetryConfig(port=65535), rank=1, tasks=[])
    Prometheus(TelemetryConfig(port=port), rank=0, tasks=[]).close()


def test_the_endpoint_lingers_until_the_final_values_are_scraped() -> None:
    endpoint = Prometheus(TelemetryConfig(linger_seconds=60.0), rank=0, tasks=[])
    try:
        endpoint.linger()  # at once: nobody scrapes
        _scrape(endpoint.url)
        endpoint.train(TRAIN)
        lingering = threading.Thread(target=endpoint.linger)
        lingering.start()
        lingering.join(timeout=0.2)
        assert lingering.is_alive(), "the scrape before the final values is not enough"
        assert _scrape(endpoint.url)["tokenformer_loss", ()] == 0.4123
        endpoint.account(Goodput(2, 200.0, 80.0, dict.fromkeys(CAUSES, 15.0), {"cpu": 400.0}))
        last = _scrape(endpoint.url)
        assert (last["tokenformer_goodput", ()], last["tokenformer_worker_seconds_total", (("device", "cpu"),)]) == (
            0.4,
            400.0,
        )
        lingering.join(timeout=30)
        assert not lingering.is_alive()
        endpoint.linger(stop=lambda: True)  # at once: somebody wants it to stop
    finally:
        endpoint.close()
