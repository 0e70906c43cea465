"""What a run tells: a real scrape, the file's lines, the curves, and the line people watch, to the letter."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from embeddings.health import TableFigures
from model.collapse import Spectrum
from trainer.collapse import Collapse
from trainer.config_sections import Telemetry as TelemetryConfig
from trainer.metrics.exact import Gauc
from trainer.metrics.values import TaskValues
from trainer.run_dir import RunDir
from trainer.telemetry import console
from trainer.telemetry.closing import closing_table
from trainer.telemetry.goodput import CAUSES, Goodput
from trainer.telemetry.jsonl import JsonLines
from trainer.telemetry.records import EvalRecord, Slowest, TrainRecord
from trainer.telemetry.telemetry import Telemetry

CLICK = TaskValues(examples=1000, weight=1000.0, loss=0.41, base_rate=0.2, ne=0.8731, auc=0.7419, calibration=1.012)
ONE_CLASS = TaskValues(examples=10, weight=10.0, loss=0.1, base_rate=0.0, ne=None, auc=None, calibration=None)
THROUGH = 1_795_144_200_000_000  # 2026-11-20 03:10 UTC
TRAIN = TrainRecord(
    step=400,
    examples=51_200,
    rows=12_800,
    loss=0.4123,
    examples_per_second=1_912.0,
    rows_per_second=478.0,
    flops_per_second=2.5e9,
    mfu=0.031,
    step_seconds=0.067,
    data_wait_seconds=0.0007,
    step_split={"data_wait": 0.0007, "forward": 0.0653, "exposed_communication": 0.001},
    grad_norm=0.5,
    learning_rate=1e-3,
    tasks={"click": CLICK},
    data_through=THROUGH,
    checkpoint_age_seconds=121.0,
    seconds_left=236.0,
    segment="dt=2026-11-20",
    goodput=Goodput(2, 100.0, 80.0, dict.fromkeys(CAUSES, 2.5), {"cpu": 200.0}),
    slowest=Slowest(3, "node-7", 0.05),
)
ITEM = TableFigures("vocabulary", False, 0.5, 0.1, 0.02, 0.0, 7, 0, 0.4, 1.5, 3.0, 0.6)
EVAL = EvalRecord(
    400, 51_200, "dt=2026-11-21", {"click": CLICK}, {"click": Gauc(0.7021, 50, 0.1)}, rows=300, seconds=1.5
)
SHARES = {"field": [0.25], "sep": [0.25], "history": [0.25], "candidate": [None], "self": [0.25]}
COLLAPSE = Collapse(
    rows=12,
    dim=4,
    spectra={"sequence": [Spectrum(9, None, None, ()), Spectrum(9, 2.5, 2.0, (0.7, 0.2, 0.1, 0.0))]},
    attention={"sequence": SHARES},
    even={"sequence": SHARES},
)


def _scrape(url: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def _lines(run_dir: RunDir) -> list[dict[str, Any]]:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in run_dir.metrics.read_text().splitlines()]


def test_the_line_people_watch() -> None:
    assert console.train_line(TRAIN) == (
        "step 400 · 1.9 k ex/s · loss .412 · click NE .873 AUC .742 cal 1.01 · data through 2026-11-20 03:10 · "
        "wait 1 % · checkpoint 2 min ago · 4 min left"
    )
    bare = replace(
        TRAIN,
        loss=None,
        tasks={"click": CLICK, "buy": ONE_CLASS},
        data_through=None,
        checkpoint_age_seconds=None,
        seconds_left=None,
        bad_steps=2,
    )
    assert console.train_line(bare) == (
        "step 400 · 1.9 k ex/s · loss – · click NE .873 AUC .742 cal 1.01 · buy NE – AUC – cal – · "
        "wait 1 % · 2 bad steps"
    )
    exposed = replace(bare, step_split={"exposed_communication": 0.0067})
    assert console.train_line(exposed).endswith("wait 1 % · exposed communication 10 % · 2 bad steps")
    assert console.eval_line(EVAL) == (
        "evaluation of dt=2026-11-21 at step 400 · click NE .873 AUC .742 GAUC .702 cal 1.01"
    )


def test_numbers_for_people() -> None:
    numbers = [console.number(v) for v in (0.4124, 1.0, 0.0, -0.25, 12.3456, None, float("nan"), 0.9999)]
    assert numbers == [".412", "1.000", ".000", "-.250", "12.346", "–", "–", "1.000"]
    assert [console.rate(v) for v in (0.4, 949.6, 999.7, 1_949, 9_960, 23_456, 1.26e6)] == [
        "0",
        "950",
        "1.0 k",
        "1.9 k",
        "10 k",
        "23 k",
        "1.3 M",
    ]
    assert [console.duration(v) for v in (-1, 40, 59.6, 236, 3_599, 11_400, 7_200, 187_200, 172_800)] == [
        "0 s",
        "40 s",
        "1 min",
        "4 min",
        "1 h",
        "3 h 10 min",
        "2 h",
        "2 d 4 h",
        "2 d",
    ]


def test_files_of_a_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run_dir = RunDir(tmp_path)
    telemetry = Telemetry(run_dir, TelemetryConfig(prometheus=False), 0, ["click"])
    with caplog.at_level(logging.INFO, "trainer.telemetry"):
        telemetry.train(TRAIN)
        telemetry.eval(EVAL)
    telemetry.checkpoint(400, 51_200, tmp_path / "checkpoints" / "step_00000400", 99, 0.5)
    telemetry.train(replace(TRAIN, step=420, grad_norm=float("nan"), loss=float("inf"), tasks={"click": ONE_CLASS}))
    telemetry.event("segment", 420, 52_000, segment="dt=2026-11-20", tasks={"click": {"ne": float("nan")}})
    telemetry.close()
    telemetry.close()
    assert [record.message for record in caplog.records] == [console.train_line(TRAIN), console.eval_line(EVAL)]
    train, evaluation, checkpoint, broken, event = _lines(run_dir)
    for line, kind in zip(
        (train, evaluation, checkpoint, event), ("train", "eval", "checkpoint", "event"), strict=True
    ):
        assert line["kind"] == kind
        assert {"time", "kind", "step", "examples"} <= line.keys()
    required = {
        "loss",
        "examples_per_second",
        "rows_per_second",
        "step_seconds",
        "data_wait_seconds",
        "grad_norm",
        "tasks",
    }
    assert required <= train.keys()
    assert {"ne", "auc", "calibration"} <= train["tasks"]["click"].keys()
    assert evaluation["split"] == "dt=2026-11-21"
    assert {"ne", "auc", "gauc", "calibration", "examples"} <= evaluation["tasks"]["click"].keys()
    assert evaluation["tasks"]["click"]["gauc"] == 0.7021
    assert train["step_split"] == TRAIN.step_split
    assert checkpoint["path"] == "step_00000400"
    assert (broken["grad_norm"], broken["loss"], broken["tasks"]["click"]["auc"]) == (None, None, None)
    assert event["tasks"] == {"click": {"ne": None}}
    board = EventAccumulator(str(run_dir.tensorboard)).Reload()
    assert [(e.step, round(e.value, 4)) for e in board.Scalars("train/loss")] == [(400, 0.4123)]
    assert board.Scalars("step/forward")[0].value == pytest.approx(0.0653)
    assert board.Scalars("eval/dt=2026-11-21/click/gauc")[0].value == pytest.approx(0.7021)


def test_resume_takes_back_what_is_trained_again(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    config = TelemetryConfig(prometheus=False)
    first = Telemetry(run_dir, config, 0, ["click"])
    for step in (20, 40, 60):
        first.train(replace(TRAIN, step=step, loss=step / 100))
    first.close()
    with run_dir.metrics.open("a") as file:
        file.write('{"kind": "train", "step": 8')  # killed in the middle of a line
    second = Telemetry(run_dir, config, 0, ["click"])
    second.resumed(40, 5_000, tmp_path / "step_00000040")
    second.train(replace(TRAIN, step=60, loss=0.99))
    second.close()
    lines = _lines(run_dir)
    assert [(line["kind"], line["step"], line.get("loss")) for line in lines] == [
        ("train", 20, 0.2),
        ("train", 40, 0.4),
        ("event", 40, None),
        ("train", 60, 0.99),
    ]
    assert lines[2]["dropped_lines"] == 2
    board = EventAccumulator(str(run_dir.tensorboard)).Reload()
    assert [(e.step, round(e.value, 2)) for e in board.Scalars("train/loss")] == [(20, 0.2), (40, 0.4), (60, 0.99)]


def test_a_run_that_begins_again_does_not_repeat_steps(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for _ in range(2):
        lines = JsonLines(path)
        for step in (20, 40):
            lines.write("train", step, 0, {})
        lines.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [20, 40]


def test_a_line_that_was_cut_inside_a_letter_goes(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = '{"kind": "train", "step": 20, "segment": "é"}\n'
    path.write_bytes((whole + whole.replace("20", "40")).encode()[:-4])
    lines = JsonLines(path)
    lines.write("train", 40, 0, {})
    lines.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [20, 40]


def test_a_full_disk_is_said_with_the_file(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "metrics.jsonl")
    lines.write("train", 20, 0, {})
    lines.close()
    lines._file = open("/dev/full", "a", encoding="utf-8")  # noqa: SIM115 - refuses every write
    with pytest.raises(OSError, match=r"No space left on device: '.*metrics\.jsonl'"):
        lines.write("train", 40, 0, {})
    with contextlib.suppress(OSError):
        lines._file.close()


def test_other_ranks_serve_and_write_nothing(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path / "run")
    telemetry = Telemetry(run_dir, TelemetryConfig(), 3, ["click"])
    assert telemetry._prometheus is not None
    url = telemetry._prometheus.url
    telemetry.resumed(20, 100, "step_00000020")
    telemetry.train(TRAIN)
    telemetry.checkpoint(400, 51_200, "x", 1, 0.1)
    assert _scrape(url)["tokenformer_steps_total", ()] == 400
    telemetry.close()
    assert not run_dir.path.exists()


def test_the_closing_table_is_made_from_plain_values(tmp_path: Path) -> None:
    telemetry = Telemetry(RunDir(tmp_path), TelemetryConfig(prometheus=False, tensorboard=False), 0, ["click", "buy"])
    telemetry.train(replace(TRAIN, step=100, examples_per_second=1_000.0, step_seconds=1.0))
    telemetry.train(
        replace(
            TRAIN, step=200, examples_per_second=3_000.0, step_seconds=1.0, tasks={"click": CLICK, "buy": ONE_CLASS}
        )
    )
    telemetry.eval(EVAL)
    result = json.loads(json.dumps(telemetry.finish()))
    telemetry.close()
    assert result["examples_per_second"] == pytest.approx(2_000.0)
    text = _printed(closing_table(result, ["tokenformer evaluate --run runs/x"]))
    rows = [" ".join(line.split()) for line in text.splitlines()]
    assert "train click .4100 .8731 .7419 1.012 1 000" in rows
    assert "buy .1000 – – – 10" in rows
    assert "dt=2026-11-21 click .4100 .8731 .7419 .7021 1.012 1 000" in rows
    assert "train: before each update, over steps 101–200 · 2.0 k examples/s over the run" in rows
    assert "tokenformer evaluate --run runs/x" in rows
    assert any(row.startswith("run directory ") for row in rows)


def test_the_closing_table_shows_no_window_that_the_end_cut_short(tmp_path: Path) -> None:
    telemetry = Telemetry(RunDir(tmp_path), TelemetryConfig(prometheus=False, tensorboard=False), 0, ["click"])
    for step in (20, 40, 42):
        telemetry.train(replace(TRAIN, step=step, loss=step / 100))
    result = telemetry.finish()
    telemetry.close()
    assert result["step"] == 42
    assert result["train"]["loss"] == 0.4
    assert result["train_steps"] == (21, 40)


def test_the_closing_table_fits_80_columns_a_row_a_line() -> None:
    segments = ",".join(f"2026-11-{day}" for day in range(10, 25))
    scores = {"ne": 1.0981, "auc": 0.7419, "calibration": 12.345, "loss": 1.0456, "examples": 123_456_789}
    tasks = dict.fromkeys(("click", "a_task_with_quite_a_long_name"), scores)
    place = "/a/path/" + "longer/than/a/screen/" * 5
    result = {
        "examples_per_second": 999_500.0,
        "train": {"tasks": tasks},
        "evals": [{"split": segments, "tasks": {task: {**scores, "gauc": None} for task in tasks}}],
        "places": {"run directory": place},
    }
    lines = _printed(closing_table(result, [f"tokenformer evaluate --run {place}"])).splitlines()
    table = [line for line in lines if place not in line]
    assert max(map(len, table)) <= 80
    numbers = [line.split()[-6:] for line in table if "123 456 789" in line]
    assert len(numbers) == 4  # each on one line, whatever the names
    assert numbers[3] == [".7419", "–", "12.345", "123", "456", "789"]
    assert f"  tokenformer evaluate --run {place}" in lines


def _printed(closing: Any) -> str:
    screen = Console(width=80, record=True, file=io.StringIO())
    screen.print(closing, crop=False)
    return screen.export_text()


def test_collapse_is_in_the_line_of_its_evaluation_and_at_the_end(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    telemetry = Telemetry(run_dir, TelemetryConfig(prometheus=False, tensorboard=False), 0, ["click"])
    telemetry.eval(EVAL)
    telemetry.eval(replace(EVAL, split="later", collapse=COLLAPSE))
    result = telemetry.finish()
    telemetry.close()
    without, line = _lines(run_dir)
    assert "collapse" not in without
    assert line["collapse"]["effective_rank"] == {"sequence": [None, 2.5]}
    assert line["collapse"]["spectrum"] == {"sequence": [[], [0.7, 0.2, 0.1, 0.0]]}
    assert line["collapse"]["attention"]["sequence"]["field"] == [0.25]
    screen = Console(width=80, record=True)
    screen.print(closing_table(result))
    text = screen.export_text()
    assert "effective rank by layer, of 4 (12 rows)" in text
    assert "sequence – 2.5" in text
    assert "sequence 25.0" in text
