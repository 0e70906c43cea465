"""The first hour with somebody's rows: a dry run, a part of the data, the files of a run and its endpoint."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.integration.command import started, write_run_file
from tests.integration.conftest import Call
from tests.trainer.runs import differing, saved_tensors
from trainer.config import load_config
from trainer.telemetry.declared import METRICS

TRAIN = ("train", "--config", "run.toml", "--launch.workers", "1")
LOOPBACK = "0100007F"  # as Linux writes 127.0.0.1


def lines_of(run_dir: Path, kind: str = "") -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if kind in ("", line["kind"])]


def test_a_dry_run_takes_the_whole_way_and_leaves_nothing(call: Call, tmp_path: Path) -> None:
    write_run_file(tmp_path, data={"segments": "", "eval_segments": ""})
    before = sorted(tmp_path.rglob("*"))
    began = time.monotonic()
    ended = call(tmp_path, *TRAIN, "--dry-run")
    assert time.monotonic() - began < 60
    assert ended.code == 0, ended.err
    assert "dry run: fine · 2 steps, 10 rows" in ended.out
    assert "resume, step, checkpoint" in ended.out
    assert sorted(tmp_path.rglob("*")) == before


def test_a_part_of_the_data_is_trained_and_says_so(call: Call, tmp_path: Path) -> None:
    """By steps, by segments, and by a sample of the requests."""
    days = {f"2026-01-0{day}": [10] for day in (1, 2, 3, 4)}
    write_run_file(tmp_path, days, train={"log_every": 1})
    for name, arguments in {
        "whole": (),
        "steps": ("--max-steps", "3"),
        "segments": ("--data.segments", "2026-01-02..2026-01-03"),
        "sample": ("--data.sample", "0.5"),
    }.items():
        ended = call(tmp_path, *TRAIN, "--run-dir", name, *arguments)
        assert ended.code == 0, ended.err
    last = {name: lines_of(tmp_path / name, "train")[-1] for name in ("whole", "steps", "segments", "sample")}
    assert {name: line["step"] for name, line in last.items()} == {"whole": 8, "steps": 3, "segments": 4, "sample": 8}
    assert {name: last[name]["rows"] for name in ("whole", "steps", "segments")} == {
        "whole": 40,
        "steps": 15,
        "segments": 20,
    }
    trained = [line["segment"] for line in lines_of(tmp_path / "segments", "train")]
    assert trained == ["2026-01-02", "2026-01-02", "2026-01-03", "2026-01-03"]
    assert 0.2 < last["sample"]["examples"] / last["whole"]["examples"] < 0.8


def test_a_run_directory_is_what_it_is_documented_to_be(call: Call, tmp_path: Path) -> None:
    write_run_file(tmp_path, data={"segments": "", "eval_segments": ""}, telemetry={"tensorboard": True})
    ended = call(tmp_path, *TRAIN, "--run-dir", "run")
    assert ended.code == 0, ended.err
    run = tmp_path / "run"
    held = {path.name for path in run.iterdir()}
    assert {"config.toml", "plan.txt", "plan.json", "env.json", "train.log", "metrics.jsonl"} <= held
    assert {"tensorboard", "checkpoints", "report.html"} <= held
    assert "report.html" in ended.out
    assert not [path for path in run.rglob("*") if path.name.endswith(".part")]
    assert json.loads((run / "env.json").read_text())["overrides"] == ["--launch.workers", "1"]
    assert json.loads((run / "plan.json").read_text())
    assert "item" in (run / "plan.txt").read_text()
    for said in (ended.out, ended.err, (run / "train.log").read_text()):
        assert not {"\x1b", "\r"} & set(said), "no escape codes where there is no terminal"

    lines = lines_of(run)
    assert {"train", "eval", "checkpoint"} <= {line["kind"] for line in lines}
    for line in lines:
        assert line.keys() >= {"time", "kind", "step", "examples"}
        assert line["kind"] in ("train", "eval", "checkpoint", "event")
    speeds = {"examples_per_second", "rows_per_second", "step_seconds", "data_wait_seconds"}
    for line in lines_of(run, "train"):
        assert line.keys() >= {"loss", "grad_norm", "tasks", *speeds}
        assert 0 < line["mfu"] < 1
        assert line["flops_per_second"] > 1e5
        assert line["tasks"].keys() == {"click", "order"}
        assert line["tasks"]["click"].keys() >= {"ne", "auc", "calibration"}
    [evaluation] = lines_of(run, "eval")
    assert evaluation["split"] == "2026-01-02"
    assert evaluation["tasks"]["click"].keys() >= {"ne", "auc", "gauc", "calibration", "examples"}

    resolved = load_config(str(run / "config.toml"), [])
    peak = resolved.train.peak_flops
    assert peak > 1e8, "measured when the run began"
    assert resolved == load_config("run.toml", ["--launch.workers", "1", "--train.peak-flops", str(peak)])
    again = call(tmp_path, "train", "--config", "run/config.toml", "--run-dir", "again")
    assert again.code == 0, again.err
    assert differing(saved_tensors(run), saved_tensors(tmp_path / "again")) == []

    scored = call(tmp_path, "evaluate", "--run", "run")
    assert scored.code == 0, scored.err
    ne = f"{evaluation['tasks']['click']['ne']:.4f}".removeprefix("0")
    assert ne in scored.out


def scraped(url: str, name: str, least: float) -> dict[str, str] | None:
    """{series: value}, once `name` has come to `least`."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    samples = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return samples if float(samples[name]) >= least else None


@pytest.mark.timeout(150)
def test_the_endpoint_of_a_run_is_scraped_while_it_trains_and_only_from_here(tmp_path: Path) -> None:
    telemetry = {"prometheus": True, "tables_every": 2}
    write_run_file(tmp_path, data={"epochs": 100}, checkpoint={"every_steps": 4}, telemetry=telemetry)
    with started(tmp_path, *TRAIN, "--run-dir", "run") as command:
        url, port = command.until(
            lambda: re.search(r"(http://127\.0\.0\.1:(\d+)/metrics)", command.said()), "the endpoint's address"
        ).groups()
        samples = command.until(lambda: scraped(url, "tokenformer_checkpoint_step", 4), "a checkpoint on the endpoint")
        listening = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines() if " 0A " in line]
    # An evaluation's; what has happened; telemetry.slice_by's.
    later = ("eval_", "events_", "effective_rank", "attention_on_fields", "train_slice_")
    from_the_start = {m.full_name for m in METRICS if not m.name.startswith(later)}
    assert {name for name in from_the_start if not any(sample.startswith(name) for sample in samples)} == set()
    assert float(samples["tokenformer_steps_total"]) >= 4
    assert [address.split(":")[0] for address in listening if int(address.split(":")[1], 16) == int(port)] == [LOOPBACK]
