"""Day after day: runs of one day each, every one begun with the last, are one run over all days in time order, to the
bit."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from embeddings.config import Table
from pipelines.batch import Position
from tests.pipelines.rows import write_segments
from tests.trainer.runs import Run, differing, newest_state, saved_tensors, tiny_config, train_all
from trainer.audit import audit_run
from trainer.audit_parents import audit_model
from trainer.audit_verb import closing_line

DAYS = {"2026-01-01": [9, 5], "2026-01-02": [11], "2026-01-03": [8, 8], "2026-01-04": [6]}
KILLED = "2026-01-03"  # this day's run is stopped in its midst, and goes on


def runs_of(folder: Path, name: str, days: list[str], **sections: Any) -> list[Run]:
    """One run over all days, and then a run a day, every one with the model of the one before."""
    config = tiny_config(folder / "rows", **sections)
    runs = [Run(replace(config, data=config.data.model_copy(update={"segments": ".."})), folder / name / "all")]
    parent: Path | None = None
    for day in days:
        of_day = replace(config, data=config.data.model_copy(update={"segments": day}))
        run = Run(of_day, folder / name / day, init_from=parent)
        if day == KILLED:
            runs.append(replace(run, config=stopped_after(of_day, config, days)))
            run = replace(run, resume="must")
        runs.append(run)
        parent = run.run_dir
    return runs


def stopped_after(of_day: Any, config: Any, days: list[str]) -> Any:
    """One step into the killed day."""
    before = sum(-(-sum(DAYS[day]) // config.data.global_batch) for day in days[: days.index(KILLED)])
    return replace(of_day, train=of_day.train.model_copy(update={"max_steps": before + 2}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both ways at one and at two ranks: dropout, two tasks, a vocabulary, evictions, warm-up all the way."""
    folder = tmp_path_factory.mktemp("days")
    write_segments(folder / "rows", DAYS)
    config = tiny_config(folder / "rows")
    # 13 users for six rows
    tables = config.embeddings.tables | {"user_id": Table(rows=8, mapping="managed", buckets=2, admit_after=2)}
    sections: dict[str, Any] = {"model": {"dropout": 0.3}, "embeddings": {"tables": tables}, "train": {"log_every": 3}}
    for world_size in (1, 2):
        train_all(runs_of(folder, str(world_size), list(DAYS), **sections), world_size)
    return folder


@pytest.mark.parametrize("world_size", ["1", "2"])
def test_day_by_day_equals_one_run_to_the_bit(folder: Path, world_size: str) -> None:
    whole, last = folder / world_size / "all", folder / world_size / list(DAYS)[-1]
    assert differing(saved_tensors(whole), saved_tensors(last)) == []
    expected, found = newest_state(whole), newest_state(last)
    apart = {"position": None, "resumed_from": ()}  # in which run, and after which checkpoints
    assert isinstance(found.position, Position)
    apart["extra"] = {name: value for name, value in found.extra.items() if name != "guards"}  # a run's own
    assert {name: value for name, value in expected.extra.items() if name != "guards"} == apart["extra"]
    assert expected.model_copy(update=apart) == found.model_copy(update=apart)
    assert len(found.resumed_from) == len(DAYS)  # three days before, and one resumption
    assert found.examples > 100
    users = saved_tensors(last)
    assert (users["id_maps/user_id/used"] == 4).all(), "full buckets: ids were evicted"
    assert 0 < users["id_maps/user_id/last_seen"].max() <= users["id_maps/user_id/clock"].min()


@pytest.mark.parametrize("world_size", ["1", "2"])
def test_every_day_tells_its_own_metrics_as_the_one_run_does(folder: Path, world_size: str) -> None:
    def told(run: Path) -> list[Any]:
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return [(x["segment"], x["tasks"]) for x in lines if x.get("event") == "segment"]

    days = [told(folder / world_size / day) for day in DAYS]
    assert [len(of_day) for of_day in days] == [1] * len(DAYS)
    assert [line for of_day in days for line in of_day] == told(folder / world_size / "all")


def test_audit_proves_the_days(folder: Path) -> None:
    for day, rows in DAYS.items():
        found = audit_run(folder / "2" / day)
        assert found.all_findings == []
        assert [(s.name, s.read) for s in found.segments] == [(day, sum(rows))]
        assert found.steps == -(-sum(rows) // 5)
    audits = audit_model(folder / "2" / list(DAYS)[-1])
    assert [Path(found.run).name for found in audits] == list(DAYS)
    assert [s.name for found in audits for s in found.segments] == list(DAYS)
    assert not [finding for found in audits for finding in found.all_findings]
    assert audits[0].step == audits[0].steps
    assert closing_line(audits).startswith(f"audit: fine · {sum(map(sum, DAYS.values()))} rows read, each exactly once")
    assert closing_line(audits).endswith("12 steps of 5 attempts of 4 runs")


def test_audit_names_a_day_that_was_trained_twice_and_a_run_that_is_gone(folder: Path, tmp_path: Path) -> None:
    days = list(DAYS)
    config = tiny_config(folder / "rows")
    again = replace(config, data=config.data.model_copy(update={"segments": days[1]}))
    train_all([Run(again, tmp_path / "again", init_from=folder / "1" / days[1])], 1)
    findings = [finding for found in audit_model(tmp_path / "again") for finding in found.all_findings]
    assert [finding.kind for finding in findings] == ["repeated"]
    assert f"segment '{days[1]}' was trained by {folder / '1' / days[1]} and again by" in findings[0].line
    shutil.move(folder / "1" / days[0], tmp_path / "elsewhere")
    findings = audit_model(folder / "1" / days[1])[0].all_findings
    assert [finding.kind for finding in findings] == ["lineage"]
    assert all(finding.line.count(" → ") == 2 for finding in findings)
