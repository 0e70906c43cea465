"""The plan: every row once an epoch, no batch over two segments, the same for every world size, resumable anywhere."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import pytest

from pipelines.batch import Position
from pipelines.errors import DataError
from pipelines.segments import Segment, list_segments
from pipelines.windows import Pass, Window
from tests.pipelines.rows import make_data, make_rows, make_schema, write_rows, write_segments

ROWS = {"1": [23, 9], "2": [4], "3": [31, 0, 1]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_segments(tmp_path_factory.mktemp("rows"), ROWS)


def make_pass(folder: Path, order: str = "time", epochs: int = 2, seed: int = 3, shuffle: bool = True) -> Pass:
    data = make_data(folder, order=order, epochs=epochs)
    return Pass(make_schema(), data, list_segments(str(folder)), seed, shuffle)


def read_rows(window: Window) -> list[tuple[int, int]]:
    """(file, row) in the order in which batches are cut."""
    rows = [(s.file, s.start + index) for s in window.stretches for index in range(s.first, s.last)]
    return [rows[index] for index in window.order()]


def global_batches(pass_: Pass, start: Position | None = None) -> list[tuple[Position, frozenset[tuple[int, int]]]]:
    found = []
    for window in pass_.windows_from(start):
        rows = read_rows(window)
        for batch in range(window.batches):
            cut = rows[batch * window.global_batch : (batch + 1) * window.global_batch]
            found.append((window.position(batch), frozenset(cut)))
    return found


@pytest.mark.parametrize("order", ["time", "shuffle"])
def test_every_row_exactly_once_an_epoch_and_short_batches_only_at_a_segments_end(folder: Path, order: str) -> None:
    pass_ = make_pass(folder, order)
    found = global_batches(pass_)
    assert len(found) == pass_.total_batches()
    assert pass_.total_rows() == 2 * 68
    for epoch in (0, 1):
        for segment, counts in enumerate(ROWS.values()):
            mine = [(p, rows) for p, rows in found if (p.epoch, p.segment) == (epoch, segment)]
            every = [row for _, rows in mine for row in rows]
            assert sorted(every) == [(file, row) for file, count in enumerate(counts) for row in range(count)]
            sizes = {p.batch: len(rows) for p, rows in mine}
            assert [sizes[batch] for batch in range(len(sizes) - 1)] == [5] * (len(sizes) - 1)
            assert [p.name for p, _ in mine] == [list(ROWS)[segment]] * len(mine)


def test_time_order_keeps_segments_and_windows_in_order_and_shuffle_mixes_them(folder: Path) -> None:
    in_time = [(p.epoch, p.segment, p.batch) for p, _ in global_batches(make_pass(folder))]
    assert in_time == sorted(in_time)
    mixed = [(p.epoch, p.segment, p.batch) for p, _ in global_batches(make_pass(folder, "shuffle"))]
    assert mixed != in_time
    assert sorted(mixed) == in_time
    rows_of_first_window = [row for _, rows in global_batches(make_pass(folder))[:3] for row in rows]
    assert sorted(rows_of_first_window) == [(0, row) for row in range(15)]


@pytest.mark.parametrize("order", ["time", "shuffle"])
def test_order_repeats_with_the_seed_and_differs_between_epochs_and_seeds(folder: Path, order: str) -> None:
    found = global_batches(make_pass(folder, order))
    assert found == global_batches(pickle.loads(pickle.dumps(make_pass(folder, order))))
    half = len(found) // 2
    assert [rows for _, rows in found[:half]] != [rows for _, rows in found[half:]]
    assert [rows for _, rows in found] != [rows for _, rows in global_batches(make_pass(folder, order, seed=4))]


@pytest.mark.parametrize("order", ["time", "shuffle"])
def test_resuming_at_every_position_is_the_uninterrupted_tail(folder: Path, order: str) -> None:
    whole = global_batches(make_pass(folder, order))
    for index, (position, _) in enumerate(whole):
        tail = global_batches(make_pass(folder, order), position)
        skip = position.batch % 3
        assert tail[skip:] == whole[index:]
        following = make_pass(folder, order).position_after(position)
        assert following == (whole[index + 1][0] if index + 1 < len(whole) else None)


def test_shuffle_fills_windows_with_other_row_groups_every_epoch(folder: Path) -> None:
    windows = list(make_pass(folder, "shuffle").windows_from())
    by_epoch = [{frozenset(read_rows(w)) for w in windows if (w.epoch, w.name) == (epoch, "1")} for epoch in (0, 1)]
    assert len(by_epoch[0]) == len(by_epoch[1]) == 3
    assert by_epoch[0] != by_epoch[1]


def test_two_one_day_runs_have_the_order_of_one_two_day_run(folder: Path) -> None:
    """And a run that ended goes on when a segment is appended."""
    segments = list_segments(str(folder))
    data = make_data(folder)

    def cut(chosen: list[Segment]) -> list[frozenset[tuple[int, int]]]:
        return [rows for _, rows in global_batches(Pass(make_schema(), data, chosen, seed=3))]

    assert cut(segments[:1]) + cut(segments[2:]) == cut([segments[0], segments[2]])
    last = global_batches(Pass(make_schema(), data, segments[:1], seed=3))[-1][0]
    following = Pass(make_schema(), data, segments[:2], seed=3).position_after(last)
    assert following is not None
    assert (following.name, following.batch) == ("2", 0)


def test_evaluation_reads_rows_in_order_whatever_the_seed(folder: Path) -> None:
    pass_ = make_pass(folder, "shuffle", epochs=3, seed=9, shuffle=False)
    rows = [row for window in pass_.windows_from() for row in read_rows(window)]
    assert len(rows) == pass_.total_rows() == 68
    assert rows[:32] == [(0, row) for row in range(23)] + [(1, row) for row in range(9)]


def test_footers_are_read_lazily_segment_by_segment(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    pass_ = make_pass(copy)
    windows = pass_.windows_from()
    next(windows)
    shutil.rmtree(copy / "dt=3")
    with pytest.raises(DataError, match=r"dt=3/part-0.parquet' does not exist"):
        list(windows)


def test_the_fingerprint_is_of_the_files_not_of_where_they_lie(folder: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    for segment in range(3):
        assert make_pass(folder).plan(0, segment).fingerprint == make_pass(moved).plan(1, segment).fingerprint
    write_rows(moved / "dt=2" / "part-1.parquet", make_rows(1, 0))
    assert make_pass(folder).plan(0, 1).fingerprint != make_pass(moved).plan(0, 1).fingerprint


def test_a_position_of_other_data_is_refused(folder: Path) -> None:
    pass_ = make_pass(folder)
    good = next(pass_.windows_from()).position(0)
    for bad, words in (
        (Position(0, 0, 0, "9", good.fingerprint), "must hold it"),
        (Position(0, 0, 0, "1", "0" * 16), "may not change"),
        (Position(0, 0, 99, "1", good.fingerprint), "keep data.epochs"),
        (Position(2, 0, 0, "1", good.fingerprint), "keep data.epochs"),
    ):
        with pytest.raises(DataError, match=words):
            next(pass_.windows_from(bad))
