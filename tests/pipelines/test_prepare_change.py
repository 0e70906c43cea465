"""A folder that grows and is refreshed holds, byte for byte, what a new one would; and is whole at every moment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from pipelines import prepare_output, prepare_ray
from pipelines.config import Data, Prepare
from pipelines.errors import DataError, SchemaError
from pipelines.prepare import PrepareReport, prepare
from pipelines.schema import Schema
from tests.pipelines.prepare_inline import contents, run_inline
from tests.pipelines.prepare_reference import LOG_TYPES, MIDNIGHT, Event, expected_rows, random_events, read_rows
from tests.pipelines.test_prepare import CASES, SEVERAL, WITH_FILTERS
from tests.pipelines.test_prepare_slices import tight
from trainer.cli import cli

pytestmark = pytest.mark.timeout(120)

DAYS = ("2025-11-19", "2025-11-20", "2025-11-21")
BY_DAY = {name: case for name, case in CASES.items() if case[1].get("split", "time") == "time"}
END = "2025-11-22T00:00:00Z"


@pytest.fixture(autouse=True)
def _inline(monkeypatch: pytest.MonkeyPatch) -> None:
    run_inline(monkeypatch.setattr)


def day_of(event: Event) -> str:
    return DAYS[(event["time"] - MIDNIGHT) // 86_400 + 1]


def write_day(log: Path, name: str, events: list[Event]) -> None:
    log.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(events, pa.schema(list(LOG_TYPES.items()))), log / f"{name}.parquet")


def write_days(log: Path, events: list[Event], *days: str) -> None:
    for day in days:
        write_day(log, day, [event for event in events if day_of(event) == day])


def make(
    schema: Schema, log: Path, out: Path, *, refresh: bool = False, as_of: str = "", **settings: Any
) -> PrepareReport:
    prepared = Prepare(log=str(log), **{"partitions": 3, "row_group_rows": 9, **settings})
    return prepare(schema, Data(rows=str(out), prepare=prepared), out, refresh=refresh, as_of=as_of)


def versions(out: Path) -> dict[str, int]:
    return {name.partition("=")[2]: info["version"] for name, info in prepare_output.read_segments(out).items()}


def tails(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.glob("_state/*/*"))}


@pytest.mark.parametrize("limit", [0, 6])
@pytest.mark.parametrize("case", BY_DAY)
def test_days_added_one_by_one_give_the_bytes_of_a_rebuild(
    case: str, limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema, settings = BY_DAY[case]
    events = random_events(seed=11)
    log, out = tmp_path / "log", tmp_path / "rows"
    if limit:
        tight(monkeypatch, limit)
    for day in DAYS:
        write_days(log, events, day)
        before = contents(out)
        report = make(schema, log, out, as_of=END, **settings)
        assert report.events == sum(day_of(event) == day for event in events)  # the log before is not read again
        assert [segment.name for segment in report.segments] == [day]
        assert contents(out).items() >= before.items()
    assert 0 < report.tails < len(events) - report.events
    make(schema, log, tmp_path / "rebuilt", as_of=END, **settings)
    assert contents(out) == contents(tmp_path / "rebuilt")
    assert tails(out)[f"_state/dt={DAYS[2]}/part-00000.arrow"]
    assert versions(out) == dict.fromkeys(DAYS, 1)
    again = make(schema, log, out, as_of=END, **settings)
    assert (again.events, again.rows) == (0, 0)
    assert "nothing to do" in "\n".join(again.lines())


def test_late_events_are_counted_left_out_and_taken_in_by_a_refresh(tmp_path: Path) -> None:
    events = random_events(seed=12)
    late = [event for event in events if day_of(event) == DAYS[1]][:5]
    log, out = tmp_path / "log", tmp_path / "rows"
    write_days(log, [event for event in events if event not in late], *DAYS[:2])
    make(SEVERAL, log, out, **WITH_FILTERS)
    third = [event for event in events if day_of(event) == DAYS[2]]
    write_day(log, "later", [*third, *late])
    report = make(SEVERAL, log, out, **WITH_FILTERS)
    assert report.late == {str(log / "later.parquet"): 5}
    assert "left out: 5 late events" in "\n".join(report.lines())
    assert "--refresh" in "\n".join(report.lines())
    assert versions(out) == dict.fromkeys(DAYS, 1)
    first = (out / f"dt={DAYS[0]}").stat().st_ino

    report = make(SEVERAL, log, out, refresh=True, **WITH_FILTERS)
    make(SEVERAL, log, tmp_path / "rebuilt", **WITH_FILTERS)
    assert contents(out) == contents(tmp_path / "rebuilt")
    assert versions(out) == {DAYS[0]: 1, DAYS[1]: 2, DAYS[2]: 2}
    assert (out / f"dt={DAYS[0]}").stat().st_ino == first
    assert report.events == sum(day_of(event) != DAYS[0] for event in events)  # it starts from the tails after day one
    assert make(SEVERAL, log, out, refresh=True, **WITH_FILTERS).events == 0


def test_a_refresh_takes_in_changed_and_removed_files(tmp_path: Path) -> None:
    events = random_events(seed=13)
    log, out = tmp_path / "log", tmp_path / "rows"
    write_days(log, events, *DAYS)
    make(SEVERAL, log, out, as_of=END, **WITH_FILTERS)
    changed = [event | {"click": 1 - event["click"]} if day_of(event) == DAYS[1] else event for event in events]
    write_days(log, changed, DAYS[1])
    report = make(SEVERAL, log, out, as_of=END, **WITH_FILTERS)
    assert "1 files of the log changed" in "\n".join(report.lines())
    make(SEVERAL, log, out, refresh=True, as_of=END, **WITH_FILTERS)
    make(SEVERAL, log, tmp_path / "changed", as_of=END, **WITH_FILTERS)
    assert contents(out) == contents(tmp_path / "changed")
    assert versions(out) == {DAYS[0]: 1, DAYS[1]: 2, DAYS[2]: 2}
    (log / f"{DAYS[2]}.parquet").unlink()
    report = make(SEVERAL, log, out, refresh=True, as_of=END, **WITH_FILTERS)
    assert versions(out) == {DAYS[0]: 1, DAYS[1]: 2}
    assert [segment.name for segment in report.segments if segment.state == "removed"] == [DAYS[2]]
    write_days(log, events, DAYS[2])
    make(SEVERAL, log, out, as_of=END, **WITH_FILTERS)
    assert contents(out) == contents(tmp_path / "changed")


@pytest.mark.parametrize("split", ["fractions", "users"])
def test_other_splits_are_renewed_as_a_whole(split: str, tmp_path: Path) -> None:
    schema, settings = CASES["history, ties ordered, fractions"]
    settings = settings | {"split": split}
    events = random_events(seed=21)
    log, out = tmp_path / "log", tmp_path / "rows"
    write_days(log, events, *DAYS[:2])
    make(schema, log, out, **settings)
    before = contents(out)
    write_days(log, events, DAYS[2])
    with pytest.raises(DataError, match="only days are added"):
        make(schema, log, out, **settings)
    assert contents(out) == before
    make(schema, log, out, refresh=True, **settings)
    make(schema, log, tmp_path / "rebuilt", **settings)
    assert contents(out) == contents(tmp_path / "rebuilt")
    assert set(versions(out).values()) == {2}
    assert make(schema, log, out, refresh=True, **settings).events == 0


def test_files_that_hold_two_days_are_read_for_the_later_one(tmp_path: Path) -> None:
    events = random_events(seed=20)
    log, out = tmp_path / "log", tmp_path / "rows"
    write_day(log, "1", [event for event in events if day_of(event) != DAYS[2]])
    write_days(log, events, DAYS[2])
    make(SEVERAL, log, out, as_of=END, **WITH_FILTERS)
    write_day(log, "3", [event | {"place": 9999} for event in events if day_of(event) == DAYS[1]][:4])
    make(SEVERAL, log, out, as_of=END, **WITH_FILTERS)
    report = make(SEVERAL, log, out, refresh=True, as_of=END, **WITH_FILTERS)
    make(SEVERAL, log, tmp_path / "rebuilt", as_of=END, **WITH_FILTERS)
    assert contents(out) == contents(tmp_path / "rebuilt")
    assert (report.late, versions(out)[DAYS[0]], report.tails > 0) == ({}, 1, True)
    assert make(SEVERAL, log, out, refresh=True, as_of=END, **WITH_FILTERS).events == 0


def test_without_tails_old_enough_a_refresh_reads_the_whole_log_and_says_so(tmp_path: Path) -> None:
    events = random_events(seed=14)
    log, out = tmp_path / "log", tmp_path / "rows"
    write_days(log, events, *DAYS)
    make(SEVERAL, log, out, as_of=END, keep_states=1, **WITH_FILTERS)
    write_days(log, events[3:], DAYS[1])
    report = make(SEVERAL, log, out, refresh=True, as_of=END, keep_states=1, **WITH_FILTERS)
    make(SEVERAL, log, tmp_path / "rebuilt", as_of=END, **WITH_FILTERS)
    assert contents(out) == contents(tmp_path / "rebuilt")
    assert report.tails == 0
    assert "the whole log is read" in "\n".join(report.lines())


def test_labels_are_null_until_their_window_is_over_and_a_refresh_fills_them_in(tmp_path: Path) -> None:
    events = random_events(seed=15)
    log, out = tmp_path / "log", tmp_path / "rows"
    settings = WITH_FILTERS | {"attribution": {"buy": "12h"}}
    write_days(log, events, *DAYS)

    def expected(as_of: int) -> Any:
        rows = expected_rows(SEVERAL, Data(rows="", prepare=Prepare(log="", **settings)), events)
        for row in (row for mine in rows.values() for row in mine):
            if row["time"] + 12 * 3600 > as_of:
                row["buy"] = [None] * len(row["buy"])
        return rows

    report = make(SEVERAL, log, out, partitions=1, **settings)
    assert read_rows(out) == expected(MIDNIGHT + 90_000)  # by default, as of the newest event
    info = prepare_output.read_segments(out)
    assert {i["as_of"] for i in info.values()} == {"2025-11-21T01:00:00Z"}
    assert "labels as of 2025-11-21T01:00:00Z" in "\n".join(report.lines())
    report = make(SEVERAL, log, out, partitions=1, as_of=END, **settings)
    assert "labels of 2 segments, first dt=2025-11-20, may be final" in "\n".join(report.lines())

    report = make(SEVERAL, log, out, partitions=1, refresh=True, as_of=END, **settings)
    assert read_rows(out) == expected(MIDNIGHT + 2 * 86_400)
    assert versions(out) == {DAYS[0]: 1, DAYS[1]: 2, DAYS[2]: 2}
    assert report.events == sum(day_of(event) != DAYS[0] for event in events)
    make(SEVERAL, log, tmp_path / "rebuilt", partitions=1, as_of=END, **settings)
    assert contents(out) == contents(tmp_path / "rebuilt")
    assert make(SEVERAL, log, out, partitions=1, refresh=True, as_of="2027-01-01", **settings).events == 0
    with pytest.raises(DataError, match="not forgotten"):
        make(SEVERAL, log, out, partitions=1, refresh=True, as_of="2025-11-20", **settings)
    with pytest.raises(SchemaError, match="a number with s, m, h or d") as error:
        make(SEVERAL, log, tmp_path / "bad", attribution={"buy": "soon", "item": "1d"}, partitions=1)
    assert len(error.value.problems) == 2
    with pytest.raises(SchemaError, match="ISO 8601"):
        make(SEVERAL, log, tmp_path / "bad", as_of="yesterday")


@pytest.mark.parametrize("limit", [0, 5])
def test_of_duplicates_the_last_of_the_log_is_kept(limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = random_events(seed=16)
    older = [event | {"click": 1 - event["click"], "item": 777} for event in events[::4]]
    write_day(tmp_path / "log", "1", older)
    write_day(tmp_path / "log", "2", events)
    write_day(tmp_path / "clean", "2", events)
    make(SEVERAL, tmp_path / "clean", tmp_path / "expected", tie_keys=("place",), **WITH_FILTERS)
    if limit:
        tight(monkeypatch, limit)
    settings = WITH_FILTERS | {"tie_keys": ("place",), "event_id": ("request", "place")}
    report = make(SEVERAL, tmp_path / "log", tmp_path / "rows", **settings)
    assert contents(tmp_path / "rows") == contents(tmp_path / "expected")
    assert report.duplicates == len(older)
    assert f"left out: {len(older)} duplicates" in "\n".join(report.lines())


def test_what_rows_hold_cannot_change_between_days(tmp_path: Path) -> None:
    events = random_events(seed=17)
    log, out = tmp_path / "log", tmp_path / "rows"
    write_days(log, events, *DAYS[:2])
    make(SEVERAL, log, out, **WITH_FILTERS)
    before = contents(out)
    write_days(log, events, DAYS[2])
    with pytest.raises(DataError) as error:
        make(SEVERAL, log, out, request="request", min_history=2, partitions=4)
    assert len(error.value.problems) == 3
    assert all(problem.count("→") == 2 for problem in error.value.problems)
    with prepare_output.opened(out), pytest.raises(DataError, match="by another process"):
        make(SEVERAL, log, out, **WITH_FILTERS)
    assert contents(out) == before
    with pytest.raises(DataError, match="holds no prepared rows"):
        make(SEVERAL, log, tmp_path / "nothing", refresh=True, **WITH_FILTERS)


KILLED = """
import os, signal, sys
from pathlib import Path
from pipelines import prepare_change, prepare_output
from tests.pipelines import test_prepare_change as test
test.run_inline(setattr)
when, place, log, out = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4])
module = prepare_change if when == "commit" else prepare_output
plain, calls = getattr(module, when), 0
def dies(*arguments):
    global calls
    calls += 1
    if calls == place:
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(*arguments)
setattr(module, when, dies)
test.make(test.SEVERAL, log, out, refresh=True, as_of=test.END, **test.WITH_FILTERS)
"""


@pytest.mark.parametrize(
    ("when", "place", "swapped"), [("commit", 1, 0), ("_carry_out", 1, 0), ("exchange", 1, 0), ("exchange", 2, 1)]
)
def test_killed_in_the_middle_each_segment_is_old_or_new(when: str, place: int, swapped: int, tmp_path: Path) -> None:
    events = random_events(seed=18)
    log, out = tmp_path / "log", tmp_path / "rows"
    write_days(log, events, *DAYS)
    make(SEVERAL, log, out, as_of=END, **WITH_FILTERS)
    old = contents(out)
    write_days(log, [event for event in events if event["request"] % 20], *DAYS)
    make(SEVERAL, log, tmp_path / "rebuilt", as_of=END, **WITH_FILTERS)
    new = contents(tmp_path / "rebuilt")
    arguments = [sys.executable, "-c", KILLED, when, str(place), str(log), str(out)]
    ended = subprocess.run(arguments, check=False, capture_output=True, text=True, env=os.environ, timeout=60)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    there: Counter[str] = Counter()
    for day in DAYS:
        mine = {path: bytes_ for path, bytes_ in contents(out).items() if day in path}
        there["old"] += mine == {path: bytes_ for path, bytes_ in old.items() if day in path}
        there["new"] += mine == {path: bytes_ for path, bytes_ in new.items() if day in path}
    assert there == Counter(old=3 - swapped, new=swapped)
    prepare_output.recover(out)
    assert contents(out) == (old if when == "commit" else new)
    assert not list(out.glob("_new"))
    assert not list(out.glob("_journal*"))
    make(SEVERAL, log, out, refresh=True, as_of=END, **WITH_FILTERS)
    assert contents(out) == new


def test_the_command_refreshes_and_says_what_is_wrong(tmp_path: Path) -> None:
    quick = str(Path(__file__).parents[2] / "trainer/configs/quick.toml")
    rows, log = str(tmp_path / "rows"), str(tmp_path / "log")
    arguments = ["data", "prepare", "--config", quick, "--data.rows", rows, "--data.prepare.log", log]
    assert CliRunner().invoke(cli, ["data", "synth", "--config", quick, "--out", log]).exit_code == 0
    assert "5,000 request rows" in CliRunner().invoke(cli, arguments).output
    later = CliRunner().invoke(cli, [*arguments, "--refresh", "--as-of", "2026-12-01"])
    assert "nothing to do" in later.output
    assert "as_of 'soon'" in str(CliRunner().invoke(cli, [*arguments, "--as-of", "soon"]).exception)


def test_progress_is_a_bar_on_a_terminal_and_else_a_line_now_and_then(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(prepare_ray, "SECONDS_BETWEEN_LINES", 0.0)
    with prepare_ray.progress("building rows", 3) as done:
        done(2)
    assert caplog.messages == ["building rows: 2 of 3 tasks done"]
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with prepare_ray.progress("building rows", 3) as done:
        done(2)
    assert "building rows" in capsys.readouterr().err
    assert len(caplog.messages) == 1


def test_where_folders_cannot_be_exchanged_the_swap_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    prepare_output.exchange(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old" / "new").exists()
    assert (tmp_path / "new" / "old").exists()
    monkeypatch.setattr(prepare_output, "RENAME_EXCHANGE", 1 << 10)  # what a file system that cannot says: EINVAL
    prepare_output.exchange(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old" / "old").exists()
    assert "for a moment the segment is not there" in caplog.text


def test_duckdb_and_polars_read_the_same_rows(tmp_path: Path) -> None:
    events = random_events(seed=19)
    log, out = tmp_path / "log", tmp_path / "rows"
    write_days(log, events, *DAYS)
    make(SEVERAL, log, out, **WITH_FILTERS)
    files = f"{out}/dt=*/*.parquet"
    by_duckdb = duckdb.sql(
        f"select dt::varchar, count(*), sum(len(item)) from '{files}' group by 1 order by 1"
    ).fetchall()
    frame = pl.scan_parquet(f"{out}/dt=*/*.parquet", hive_partitioning=True)
    by_polars = frame.group_by("dt").agg(pl.len(), pl.col("item").list.len().sum().alias("items")).sort("dt").collect()
    assert by_duckdb == [(str(day), rows, items) for day, rows, items in by_polars.rows()]
    infos = prepare_output.read_segments(out).values()
    assert [(i["segment"].partition("=")[2], i["rows"], i["supervised"]) for i in infos] == by_duckdb
    codecs = {pq.read_metadata(path).row_group(0).column(0).compression for path in out.glob("dt=*/*.parquet")}
    assert codecs == {"ZSTD"}
    assert json.loads((out / "_prepare.json").read_text())["partitions"] == 3
