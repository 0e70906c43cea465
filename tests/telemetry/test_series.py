"""An endpoint has at most 300 series, whatever a run has: 500 tables, 512 ranks, many tasks and splits."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest

from embeddings.health import TableFigures
from tests.telemetry.test_telemetry import COLLAPSE, EVAL, TRAIN, _scrape
from trainer.config_sections import Telemetry as TelemetryConfig
from trainer.metrics.exact import Gauc
from trainer.telemetry.prometheus import Prometheus
from trainer.telemetry.series import MAX_SERIES

RANKS, TABLES = 512, 500
ITEM = TableFigures("vocabulary", False, 0.5, 0.1, 0.02, 0.0, 7, 0, 0.4, 1.5, 3.0, 0.6)


@pytest.mark.parametrize("rank", [0, 1, RANKS - 1])
def test_five_hundred_tables_on_512_ranks_are_at_most_300_series_a_rank(
    rank: int, caplog: pytest.LogCaptureFixture
) -> None:
    tasks = {f"task_{t}": TRAIN.tasks["click"] for t in range(12)}
    tables = {f"table_{t:03}": replace(ITEM, fill=t / TABLES) for t in range(TABLES)}
    split = replace(EVAL, tasks=tasks, gauc={task: Gauc(0.7, 50, 0.1) for task in tasks}, collapse=COLLAPSE)
    endpoint = Prometheus(TelemetryConfig(), rank, list(tasks), world_size=RANKS)
    try:
        endpoint.train(replace(TRAIN, tasks=tasks, lifetime=tasks, tables=tables))
        first = _scrape(endpoint.url)
        with caplog.at_level(logging.WARNING, "trainer.telemetry"):
            for day in range(5):  # tables give way, and what has no room even so is left out and said
                endpoint.eval(replace(split, split=f"2026-11-2{day}"))
        last = _scrape(endpoint.url)
    finally:
        endpoint.close()
    assert len(first) <= MAX_SERIES
    of_tables = [labels for name, labels in first if name.startswith("tokenformer_table_")]
    if rank:
        assert len(last) < 60, "what is true of the job is told once"
        assert of_tables == []
        return
    assert len({labels for labels in of_tables}) >= 8
    assert (("table", "table_499"),) in of_tables, "the highest come first"
    assert len(last) == MAX_SERIES
    assert not any(name.startswith("tokenformer_table_") for name, _ in last)
    assert last["tokenformer_series_left_out", ()] > 0
    (warning,) = caplog.records
    assert "an endpoint has at most 300" in warning.message
    assert ("tokenformer_eval_auc", (("split", "2026-11-20"), ("task", "task_11"))) in last
