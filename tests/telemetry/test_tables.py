"""What is told of tables: few series however many tables, one warning of each thing, the end's table."""

from __future__ import annotations

import io
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from embeddings.health import TableFigures
from tests.telemetry.test_telemetry import EVAL, TRAIN, _lines, _scrape
from trainer.config_sections import Telemetry as TelemetryConfig
from trainer.metrics.exact import Gauc
from trainer.run_dir import RunDir
from trainer.telemetry.closing import closing_table
from trainer.telemetry.declared import TABLE_FIGURES
from trainer.telemetry.prometheus import Prometheus
from trainer.telemetry.tables import SHOWN, TableWatch, worth_saying
from trainer.telemetry.telemetry import Telemetry

SOUND = TableFigures("vocabulary", False, 0.5, 0.1, 0.02, None, 7, 0, 0.4, 1.5, 3.0, 0.6)
HASHED = TableFigures("hash", False, 0.5, 0.1, 0.0, 0.01, None, None, None, 1.5, 3.0, 0.6)
MANAGED = TableFigures("managed", True, 0.5, 0.1, 0.4, None, 7, 7, 1.0, 1.5, 3.0, 0.0)


def test_five_hundred_tables_are_at_most_three_hundred_series() -> None:
    tables = {f"table_{t:03}": replace(HASHED, row_norm=1 + t / 500, fill=t / 500) for t in range(500)}
    tasks = {f"task_{t}": TRAIN.tasks["click"] for t in range(5)}
    endpoint = Prometheus(TelemetryConfig(), rank=0, tasks=list(tasks))
    other = Prometheus(TelemetryConfig(), rank=1, tasks=list(tasks))
    try:
        for each in (endpoint, other):
            each.train(replace(TRAIN, tasks=tasks, tables=tables))
            gauc = {task: Gauc(0.7, 50, 0.1) for task in tasks}
            each.eval(replace(EVAL, tasks=tasks, gauc=gauc))
            each.checkpoint(400, 1, 1.0)
            each.event("segment")
        found = _scrape(endpoint.url)
        assert len(found) <= 300
        norms = {dict(labels)["table"] for name, labels in found if name == "tokenformer_table_row_norm"}
        assert norms == {f"table_{t:03}" for t in range(500 - SHOWN, 500)}
        assert not any(name.startswith("tokenformer_table_") for name, _ in _scrape(other.url)), "one rank is enough"
        endpoint.train(replace(TRAIN, tables={"only": SOUND}))
        later = [(name, labels) for name, labels in _scrape(endpoint.url) if name.startswith("tokenformer_table_")]
        assert {dict(labels)["table"] for _, labels in later} == {"only"}, "series of the others end"
        endpoint.train(TRAIN)  # no sample: what is known stays
        assert ("tokenformer_table_fill", (("table", "only"),)) in _scrape(endpoint.url)
    finally:
        endpoint.close()
        other.close()


def test_a_line_has_the_tables_of_its_samples_only(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    telemetry = Telemetry(run_dir, TelemetryConfig(prometheus=False), 0, ["click"])
    telemetry.train(replace(TRAIN, tables={"item": replace(SOUND, row_norm=1.23456789, row_norm_max=float("nan"))}))
    telemetry.train(replace(TRAIN, step=420))
    telemetry.close()
    first, second = _lines(run_dir)
    assert "tables" not in second
    assert first["tables"]["item"].keys() == TABLE_FIGURES.keys()
    assert (first["tables"]["item"]["row_norm"], first["tables"]["item"]["row_norm_max"]) == (1.235, None)
    board = EventAccumulator(str(run_dir.tensorboard)).Reload()
    assert [(e.step, round(e.value, 4)) for e in board.Scalars("tables/highest_fill")] == [(400, 0.4)]


def test_a_table_is_warned_of_once_and_not_for_a_first_sample(caplog: pytest.LogCaptureFixture) -> None:
    watch = TableWatch()
    full = {"item": replace(SOUND, fill=0.95), "user": SOUND, "managed": MANAGED, "hashed": HASHED}
    with caplog.at_level(logging.WARNING, "trainer.telemetry"):
        watch.look(full, 100)
        assert caplog.messages == []
        for step in (200, 300):
            watch.look(full, step)
    [line] = caplog.messages
    assert line == (
        "step 200: table 'item' has 95 % of its rows in use → ids that come when it is full get the unknown row → more "
        "rows (fixed at birth), mapping = 'managed', or 'hash'"
    )
    caplog.clear()
    worse = {"item": replace(SOUND, fill=1.0, unknown_rate=0.3), "hashed": replace(HASHED, collision_rate=0.2)}
    for step in (400, 500, 600):
        watch.look(worse, step)
    unknown, collisions = caplog.messages
    assert unknown.startswith("step 500: table 'item': 30 % of its ids' occurrences are of unknown ids → ")
    assert collisions.startswith("step 500: table 'hashed': 20 % of a batch's ids share their row with another one")
    assert all(message.count(" → ") == 2 and "\n" not in message for message in caplog.messages)


def test_many_tables_are_a_few_warnings(caplog: pytest.LogCaptureFixture) -> None:
    watch = TableWatch()
    for step in (100, 200, 300):
        watch.look({f"t{t:03}": replace(HASHED, collision_rate=0.5) for t in range(500)}, step)
    assert len(caplog.messages) == 6
    assert caplog.messages[-1].startswith("step 200: the same is so of 495 more of the tables: t005, t006, ")
    assert caplog.messages[-1].endswith(" …")


def test_the_end_says_only_what_is_worth_it(tmp_path: Path) -> None:
    assert worth_saying({"item": SOUND, "managed": MANAGED, "hashed": HASHED}) == {}
    telemetry = Telemetry(RunDir(tmp_path), TelemetryConfig(prometheus=False, tensorboard=False), 0, ["click"])
    worse = {f"a_table_with_quite_a_long_name_{t}": replace(HASHED, collision_rate=0.3 + t / 100) for t in range(9)}
    telemetry.train(replace(TRAIN, tables={"item": SOUND, **worse}))
    telemetry.train(replace(TRAIN, step=420))
    result = json.loads(json.dumps(telemetry.finish()))
    telemetry.close()
    assert "tables" not in result["train"]
    assert list(result["tables"]) == [f"a_table_with_quite_a_long_name_{t}" for t in (8, 7, 6, 5, 4)]
    lines = _printed(closing_table({**result, "places": {}}))
    assert max(map(len, lines)) <= 80
    rows = [" ".join(line.split()) for line in lines]
    assert any(row.startswith("tables worth a look") for row in rows)
    assert sum(row.endswith("38 % 10 % 60 %") for row in rows) == 1
    sound = _printed(closing_table({**result, "tables": {}}))
    assert not any("tables worth a look" in line for line in sound)


def _printed(closing: Any) -> list[str]:
    screen = Console(width=80, record=True, file=io.StringIO())
    screen.print(closing, crop=False)
    return screen.export_text().splitlines()
