"""Footers on a store that takes its time: few requests, many at once, each once a run, and files that change are
found."""

from __future__ import annotations

import os
import pickle
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from pipelines import storage
from pipelines.config import Data
from pipelines.errors import DataError
from pipelines.footer_cache import FooterCache
from pipelines.footer_table import Footers, read_segments
from pipelines.footers import check_files, read_footers
from pipelines.plan_ahead import Recent, fingerprint
from pipelines.segments import Segment, find_segments, list_segments, look_up
from pipelines.windows import Pass
from tests.pipelines.rows import make_data, make_schema, write_segments
from tests.pipelines.slow_store import SlowStore, file_names, log_file, log_schema

pytestmark = pytest.mark.timeout(60)
ROWS = {"1": [23, 9], "2": [4], "3": [31, 2]}
ROWS_A_FILE = 500


def slow_store(segments: int, files: int, seconds: float = 0.03) -> SlowStore:
    contents = [log_file(ROWS_A_FILE - variant, 200, variant) for variant in range(3)]
    names = {name: number % 3 for number, name in enumerate(file_names(segments, files // segments))}
    store = SlowStore(names, contents, seconds)
    storage.mount("slow", fs.PyFileSystem(store))
    return store


def slow_data(**changes: object) -> Data:
    return Data(**({"rows": "slow://log", "segments": "..", "global_batch": 64, "window_batches": 4} | changes))


@pytest.mark.parametrize("segments", [1, 20, 2000])
def test_2000_footers_at_30_ms_take_seconds_whatever_the_number_of_segments(segments: int, tmp_path: Path) -> None:
    """One after the other they would take a minute for the reads alone. The time allows for a busy machine; that many
    requests are under way at once, and one a footer, does not depend on it."""
    store = slow_store(segments, 2000)
    began = time.perf_counter()
    found = find_segments(slow_data()).train
    assert store.pages == 2, "one listing gives names, sizes and times"
    cache = FooterCache(tmp_path)
    assert check_files(log_schema(), found, cache) == []
    assert (store.reads, store.looks) == (2000, 1), "one request a footer, and one for what the path is"
    pass_ = Pass(log_schema(), slow_data(), found, cache=FooterCache(tmp_path))
    assert sum(window.rows for window in pass_.windows_from()) == sum(ROWS_A_FILE - v for v in store.names.values())
    assert store.reads == 2000, "the plan finds them in the cache"
    assert store.most_at_once >= 100
    assert time.perf_counter() - began < 30


def test_a_plan_without_a_cache_reads_ahead_and_each_footer_once() -> None:
    store = slow_store(300, 300)
    found = find_segments(slow_data()).train
    pass_ = Pass(log_schema(), slow_data(epochs=2), found)
    assert sum(1 for _ in pass_.windows_from()) == 2 * 300 * 2
    assert store.reads == 300, "the second epoch has them in memory"
    assert store.most_at_once >= 50


def test_the_next_segment_is_ready_before_it_is_asked_for() -> None:
    store = slow_store(2, 40, seconds=0.2)
    pass_ = Pass(log_schema(), slow_data(), find_segments(slow_data()).train)
    windows = pass_.windows_from()
    first = [next(windows), next(windows)]
    assert {window.segment for window in first} == {0}
    time.sleep(1.5)
    assert store.reads == 40
    began = time.perf_counter()
    assert any(window.segment == 1 for window in windows)
    assert time.perf_counter() - began < 0.15


def test_an_abandoned_plan_stops_reading() -> None:
    slow_store(2, 4000)
    pass_ = Pass(log_schema(), slow_data(), [list_segments("slow://log/dt=000000")[0]] * 2)
    windows = pass_.windows_from()
    next(windows)
    next(windows)
    windows.close()  # type: ignore[attr-defined]
    deadline = time.perf_counter() + 10
    while any(thread.name.startswith("plan") for thread in threading.enumerate()):
        assert time.perf_counter() < deadline
        time.sleep(0.05)


def test_arrays_say_what_pyarrow_says_and_one_schema_is_kept_once(tmp_path: Path) -> None:
    folder = write_segments(tmp_path / "rows", ROWS)
    for segment in list_segments(str(folder)):
        [found] = read_segments([segment])
        plain = [pq.read_metadata(path) for path in segment.files]
        assert found.counts_F.tolist() == [one.num_row_groups for one in plain]
        assert found.rows_G.tolist() == [m.row_group(g).num_rows for m in plain for g in range(m.num_row_groups)]
        assert len(set(found.schema_F.tolist())) == 1
        [footer, *_] = read_footers(segment.files)
        assert footer.schema.equals(pq.read_schema(segment.files[0]))
        assert (footer.size, footer.rows) == (Path(segment.files[0]).stat().st_size, plain[0].num_rows)


def test_the_cache_gives_back_what_was_read_and_only_for_the_files_as_listed(tmp_path: Path) -> None:
    folder = write_segments(tmp_path / "rows", ROWS)
    segments = list_segments(str(folder))
    footers = list(read_segments(segments))
    other = pa.schema({"other": pa.int8()})
    footers[1] = Footers(np.array([1]), np.array([4]), np.array([0], np.int32), [other])
    FooterCache(tmp_path / "cache").write(segments, footers)
    cache: FooterCache = pickle.loads(pickle.dumps(FooterCache(tmp_path / "cache")))
    for segment, footer in zip(segments, footers, strict=True):
        found = cache.find(segment)
        assert found is not None
        assert fingerprint(segment, found) == fingerprint(segment, footer)
        assert cache.rows(segment) == footer.rows
        schemas = [found.schemas[index] for index in found.schema_F]
        assert schemas == [footer.schemas[index] for index in footer.schema_F]
        for change in (
            {"name": "x"},
            {"sizes": (segment.sizes[0] + 1, *segment.sizes[1:])},
            {"changed": (segment.changed[0] + 1, *segment.changed[1:])},
            {"files": segment.files[::-1] if len(segment.files) > 1 else ("x",)},
        ):
            assert cache.find(replace(segment, **change)) is None
    assert FooterCache(tmp_path / "none").find(segments[0]) is None


def test_a_spoilt_cache_is_said_and_done_without(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    segments = list_segments(str(write_segments(tmp_path / "rows", ROWS)))
    cache = FooterCache(tmp_path / "cache")
    assert check_files(make_schema(), segments, cache) == []
    file = tmp_path / "cache" / "footers.arrow"
    file.write_bytes(file.read_bytes()[:-20])
    assert FooterCache(tmp_path / "cache").find(segments[0]) is None
    assert "footers are read again" in caplog.text
    assert check_files(make_schema(), segments, FooterCache(tmp_path / "cache")) == []
    assert FooterCache(tmp_path / "cache").find(segments[0]) is not None


def test_faulty_files_leave_no_cache(tmp_path: Path) -> None:
    folder = write_segments(tmp_path / "rows", ROWS)
    (folder / "dt=2" / "part-0.parquet").write_bytes(b"PAR1")
    assert len(check_files(make_schema(), list_segments(str(folder)), FooterCache(tmp_path / "cache"))) == 1
    assert not (tmp_path / "cache").exists()


def rewrite(path: Path, seconds: int) -> None:
    """The same size, other values, written later."""
    table = pq.read_table(path)
    before = path.stat()
    pq.write_table(table.set_column(5, "slot", pa.array([9] * len(table))), path, row_group_size=7)
    whole = path.read_bytes()[: before.st_size].ljust(before.st_size, b"\0")
    path.write_bytes(whole)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + seconds * 10**9))


@pytest.mark.parametrize("order", ["time", "shuffle"])
@pytest.mark.parametrize("cached", [False, True])
def test_files_that_change_under_a_run_are_named_before_their_segment_trains(
    tmp_path: Path, order: str, cached: bool
) -> None:
    folder = write_segments(tmp_path / "rows", ROWS)
    data = make_data(folder, segments="..", order=order)
    cache = FooterCache(tmp_path / "cache" if cached else None)
    segments = find_segments(data).train
    assert check_files(make_schema(), segments, cache) == []
    pass_ = Pass(make_schema(), data, segments, cache=cache)
    shutil.copy(folder / "dt=3" / "part-1.parquet", folder / "dt=3" / "part-0.parquet")
    rewrite(folder / "dt=3" / "part-1.parquet", 5)
    windows = pass_.windows_from()
    trained = []
    with pytest.raises(DataError) as caught:
        trained += [window.name for window in iter(lambda: next(windows), None)]
    assert "3" not in trained
    larger, rewritten = caught.value.problems
    assert "part-0.parquet' has " in larger
    assert "when the run began" in larger
    assert "part-1.parquet' was written again at " in rewritten
    assert all(line.count(" → ") == 2 for line in caught.value.problems)
    again = Pass(make_schema(), data, find_segments(data).train)  # a new start takes what is there
    if order == "time":
        assert next(again.windows_from()).name == "1"


def test_many_changed_files_are_counted(tmp_path: Path) -> None:
    store = slow_store(1, 30, seconds=0.0)
    [segment] = find_segments(slow_data()).train
    store.changed = dict.fromkeys(store.names, 1)
    with pytest.raises(DataError) as caught:
        Pass(log_schema(), slow_data(), [segment]).plan(0, 0)
    assert len(caught.value.problems) == 9
    assert "22 more of its 30 files" in caught.value.problems[-1]


def test_a_copy_written_later_has_the_same_fingerprint(tmp_path: Path) -> None:
    folder = write_segments(tmp_path / "rows", ROWS)
    data = make_data(folder, segments="..")
    before = Pass(make_schema(), data, find_segments(data).train).plan(0, 0).fingerprint
    for path in folder.rglob("*.parquet"):
        os.utime(path, ns=(0, 5))
    assert Pass(make_schema(), data, find_segments(data).train).plan(0, 0).fingerprint == before


@pytest.mark.parametrize("order", ["time", "shuffle"])
def test_batches_left_are_exact_where_footers_are_known_and_near_where_not(tmp_path: Path, order: str) -> None:
    folder = write_segments(tmp_path / "rows", ROWS)
    data = make_data(folder, segments="..", order=order, epochs=2)
    segments = find_segments(data).train
    cache = FooterCache(tmp_path / "cache")
    check_files(make_schema(), segments, cache)
    pass_ = Pass(make_schema(), data, segments, seed=3, cache=cache)
    total = 2 * (7 + 1 + 7)
    assert pass_.batches_after(None) == pass_.total_batches() == total
    positions = [window.position(batch) for window in pass_.windows_from() for batch in range(window.batches)]
    assert [pass_.batches_after(position) for position in positions] == list(range(total - 1, -1, -1))


def test_an_estimate_reads_the_first_segment_and_no_other() -> None:
    store = slow_store(50, 100)
    pass_ = Pass(log_schema(), slow_data(), find_segments(slow_data()).train)
    exact = 50 * -(-2 * (ROWS_A_FILE - 1) // 64)
    assert abs(pass_.batches_after(None) - exact) <= 0.1 * exact
    assert store.reads == 2


def test_segments_that_name_files_alone_are_looked_up(tmp_path: Path) -> None:
    folder = write_segments(tmp_path / "rows", {"1": [3] * 10})
    [listed] = list_segments(str(folder))
    bare = Segment("1", (*listed.files, f"{folder}/none.parquet"))
    [found] = look_up([bare])
    assert (found.sizes, found.changed) == ((*listed.sizes, -1), (*listed.changed, -1))
    [line] = check_files(make_schema(), [bare])
    assert "none.parquet' does not exist" in line
    with pytest.raises(DataError, match=r"none\.parquet' does not exist"):
        Pass(make_schema(), make_data(folder), [bare]).plan(0, 0)


def test_recent_keeps_the_last_used_within_its_weight() -> None:
    recent: Recent[list[int]] = Recent(len, 5)
    for key, size in (("a", 2), ("b", 2), ("c", 2)):
        recent.put(key, [0] * size)
    assert recent.get("a") is None
    assert recent.get("b") is not None
    recent.put("d", [0] * 3)
    assert (recent.get("c"), recent.get("b")) == (None, [0, 0])
    recent.put("e", [0] * 9)
    assert [recent.get(key) is not None for key in "bde"] == [False, False, True]
