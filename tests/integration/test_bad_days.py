"""A bad day is noticed before it is trained: the run stops before a step, or goes on as if the day were not there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.integration.command import TORCHRUN, ran, write_run_file
from tests.integration.conftest import Call
from tests.pipelines.rows import make_rows, write_rows
from tests.trainer.runs import differing, newest_state, saved_tensors
from trainer.config import load_config

pytestmark = pytest.mark.timeout(300)

DAYS = ("2026-01-01", "2026-01-02", "2026-01-03", "2026-01-04", "2026-01-05")
BAD, LATER = DAYS[2], DAYS[3]
ROWS, BATCH = 500, 250
TRAIN = ("train", "--config", "run.toml", "--launch.workers", "1", "--run-dir")
SKIP = ("--data.gate.on-fail", "skip")


def write_day(folder: Path, day: str, spoilt: str = "") -> None:
    """spoilt: a column with -1 in 5 % of the rows."""
    rows = make_rows(ROWS, seed=DAYS.index(day))
    if spoilt:
        for row in rows[::20]:
            row[spoilt] = -1.0
    write_rows(folder / "rows" / f"dt={day}" / "part-0.parquet", rows, row_group_rows=100)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four days to train on, the third of them bad, and one to evaluate on."""
    sections: dict[str, Any] = {
        "data": {"segments": "", "eval_segments": "", "global_batch": BATCH, "window_batches": 1}
    }
    write_run_file(tmp_path, {DAYS[0]: [1]}, **sections)
    for day in DAYS:
        write_day(tmp_path, day, "age" if day == BAD else "")
    return tmp_path


def lines_of(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def test_a_minus_one_in_a_twentieth_of_a_column_stops_the_run_before_a_step(call: Call, folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    for more in ((), ("--dry-run",)):
        ended = call(folder, *TRAIN, "run", "--data.gate.previous", "3", *more)
        assert ended.code == 3, ended.err
        [line] = ended.errors
        for part in (f"segment '{BAD}': column 'age': share of -1 is ", "max_sentinel_increase = 0.02", "data.exclude"):
            assert part in line
        assert sorted(folder.rglob("*")) == before  # no step, no checkpoint, no run directory
    ended = call(folder, *TRAIN, "run", "--data.gate.on-fail", "fail", "--data.exclude", f'["{BAD}"]')
    assert ended.code == 0, ended.err
    assert newest_state(folder / "run").step == 3 * ROWS // BATCH


def test_a_skipped_day_is_as_if_it_were_not_there_to_the_bit_and_stays_out(call: Call, folder: Path) -> None:
    excluded = call(folder, *TRAIN, "excluded", "--data.exclude", f'["{BAD}"]')
    assert excluded.code == 0, excluded.err
    first = call(folder, *TRAIN, "run", *SKIP, "--max-steps", "3")  # in the second day
    assert first.code == 0, first.err
    assert f"segment '{BAD}' is left out (data.gate.on_fail = 'skip')" in first.err
    run = folder / "run"
    decisions = json.loads((run / "gate.json").read_text())["segments"]
    assert {day: decision["verdict"] for day, decision in decisions.items()} == {
        DAYS[0]: "passed",
        DAYS[1]: "passed",
        BAD: "skipped",
        LATER: "passed",
    }
    assert decisions[LATER]["references"] == [DAYS[0], DAYS[1]]  # what is left out is no reference
    assert load_config(run / "config.toml").data.exclude == (BAD,)
    profiles = {path.name: path.stat().st_mtime_ns for path in (run / "profiles").iterdir()}
    assert set(profiles) == {f"{day}.json" for day in DAYS[:4]}

    write_day(folder, BAD)  # mended, too late for this run
    resumed = call(folder, *TRAIN, "run", "--data.gate.on-fail", "fail", "--resume", "must")
    assert resumed.code == 0, resumed.err
    assert f"'{BAD}' is left out, as decided before; its files have changed since" in resumed.err
    assert {path.name: path.stat().st_mtime_ns for path in (run / "profiles").iterdir()} == profiles
    assert differing(saved_tensors(run), saved_tensors(folder / "excluded")) == []
    assert [line["segment"] for line in lines_of(run, "train")][-1] == LATER
    told = [lines_of(path, "eval")[-1]["tasks"] for path in (run, folder / "excluded")]
    assert told[0] == told[1]

    ungated = call(folder, *TRAIN, "run", "--resume", "must")  # the run's order does not depend on the gate's presence
    assert ungated.code == 0, ungated.err
    assert newest_state(run).position == newest_state(folder / "excluded").position
    shutil.rmtree(run / "checkpoints")  # from the beginning: nothing is settled
    again = call(folder, *TRAIN, "run", "--data.gate.on-fail", "fail", "--resume", "auto")
    assert again.code == 0, again.err
    assert newest_state(run).step == 4 * ROWS // BATCH


def test_a_warning_trains_all_the_same_and_new_days_are_judged_on_resume(call: Call, folder: Path) -> None:
    shutil.rmtree(folder / "rows" / f"dt={LATER}")
    ended = call(folder, *TRAIN, "run", "--data.gate.on-fail", "warn")
    assert ended.code == 0, ended.err
    assert f"warning: segment '{BAD}': column 'age'" in ended.err
    assert "trained all the same" in ended.err
    assert newest_state(folder / "run").step == 3 * ROWS // BATCH
    write_day(folder, LATER, "score")
    stopped = call(folder, *TRAIN, "run", "--resume", "must", "--data.gate.on-fail", "fail")
    assert stopped.code == 3, stopped.err
    [line] = stopped.errors
    assert f"segment '{LATER}': column 'score': share of -1 is " in line
    assert newest_state(folder / "run").step == 3 * ROWS // BATCH  # what was there is as it was
    write_day(folder, LATER)
    resumed = call(folder, *TRAIN, "run", "--resume", "must", "--data.gate.on-fail", "fail")
    assert resumed.code == 0, resumed.err
    assert newest_state(folder / "run").step == 4 * ROWS // BATCH


def test_every_rank_under_torchrun_leaves_the_same_day_out(folder: Path) -> None:
    """Only rank 0's process has asked the gate."""
    ended = ran(folder, *TRAIN[:3], "--run-dir", "run", *SKIP, launcher=TORCHRUN)
    assert ended.code == 0, ended.err
    assert f"segment '{BAD}' is left out" in ended.err
    assert newest_state(folder / "run").step == 3 * ROWS // BATCH
    assert newest_state(folder / "run").rows == 3 * ROWS


def test_nothing_left_to_train_is_said(call: Call, folder: Path) -> None:
    ended = call(folder, *TRAIN, "run", *SKIP, "--data.segments", BAD)
    assert ended.code == 3, ended.err
    assert f"leaves out all segments of this run: {BAD}" in ended.errors[0]
    assert not (folder / "run").exists()


def test_profile_and_compare_show_a_day_and_what_changed(call: Call, folder: Path) -> None:
    shown = call(folder, "data", "profile", "--config", "run.toml", "--segment", BAD, "--json", "bad.json")
    assert shown.code == 0, shown.err
    for day in DAYS[:3]:
        assert day in shown.out
    assert f"segment '{BAD}': {ROWS} rows (all read) in 1 file" in shown.out
    age = next(line for line in shown.out.splitlines() if line.strip().startswith("age "))
    assert "100%" in age
    assert "-1: " in age
    late = next(line for line in shown.out.splitlines() if line.strip().startswith("late "))
    assert "0%" in late
    assert f"column 'late' (default 9) is there for 0.0% in {DAYS[0]}..{BAD}" in shown.out
    again = call(folder, "data", "profile", "--config", "run.toml", "--segment", BAD, "--json", "bad.json")
    assert again.code == 2
    assert "never replaces a file" in again.errors[0]

    for before, now, more in (
        (DAYS[1], "bad.json", ("--config", "run.toml")),
        (f"rows/dt={DAYS[1]}", f"rows/dt={BAD}", ("--config", "run.toml")),
        (f"rows/dt={DAYS[1]}", f"rows/dt={BAD}", ()),
    ):
        compared = call(folder, "data", "compare", before, now, *more)
        assert compared.code == 0, compared.err
        first = next(line for line in compared.out.splitlines() if "max_" in line)  # the largest change
        assert "column 'age': share of -1" in first
        assert "max_sentinel_increase = 0.02  ← beyond it" in first
        assert " 1 beyond the limits of [data.gate]" in compared.out
        assert "label rate of click: " in compared.out
    same = call(folder, "data", "compare", "bad.json", "bad.json")
    assert same.code == 0, same.err
    assert " 0 beyond the limits" in same.out


def test_what_cannot_be_profiled_is_said_in_a_line(call: Call, folder: Path) -> None:
    for code, part, arguments in (
        (2, "either a PATH or --config", ("profile",)),
        (3, "--segment 2027", ("profile", "--config", "run.toml", "--segment", "2027")),
        (3, "path 'nowhere'", ("profile", "nowhere")),
        (3, "profile 'absent.json'", ("compare", "absent.json", BAD, "--config", "run.toml")),
        (3, "path 'nowhere'", ("compare", BAD, "nowhere", "--config", "run.toml")),
        (2, "data.gate.columns.nobody", ("profile", "--config", "column.toml")),
        (2, "data.gate.max_psy", ("profile", "--config", "gate.toml")),
    ):
        text = (folder / "run.toml").read_text()
        (folder / "column.toml").write_text(text + "\n[data.gate.columns.nobody]\nmax_psi = 1.0\n")
        (folder / "gate.toml").write_text(text + "\n[data.gate]\nmax_psy = 1.0\n")
        ended = call(folder, "data", *arguments)
        assert ended.code == code, ended.err
        [line] = ended.errors
        assert part in line
        assert line.count(" → ") == 2
