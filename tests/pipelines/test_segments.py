"""Which segments there are, which are trained on, and what the footers say against the schema."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.errors import DataError
from pipelines.footers import check_files, read_footers
from pipelines.segments import SegmentList, find_segments, list_segments
from pipelines.storage import open_file
from tests.pipelines.rows import make_data, make_history_schema, make_rows, make_schema, to_table, write_rows

DAYS = ("2026-11-13", "2026-11-14", "2026-11-15")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    for day in DAYS:
        for part in (1, 0):
            write_rows(folder / f"dt={day}" / f"part-{part}.parquet", make_rows(3, part))
        (folder / f"dt={day}" / "_SUCCESS").touch()
        (folder / f"dt={day}" / ".part-0.parquet.crc").touch()
    (folder / "_tmp").mkdir()
    write_rows(folder / "_tmp" / "part-0.parquet", make_rows(1, 0))
    (folder / "schema.toml").touch()
    return folder


def names(found: SegmentList) -> tuple[list[str], list[str]]:
    return [s.name for s in found.train], [s.name for s in found.eval]


@pytest.mark.parametrize(
    ("train", "evaluate", "expected"),
    [
        ("", "", ([*DAYS[:2]], [DAYS[2]])),
        ("", DAYS[0], ([*DAYS[1:]], [DAYS[0]])),
        (f"{DAYS[0]}..{DAYS[1]}", "", ([*DAYS[:2]], [DAYS[2]])),
        (f"..{DAYS[1]}", f"{DAYS[2]}..", ([*DAYS[:2]], [DAYS[2]])),
        (DAYS[1], "", ([DAYS[1]], [DAYS[2]])),
        (DAYS[2], "", ([DAYS[2]], [])),
        ("..", "", ([*DAYS], [])),
        ("2026-11-14..2027", DAYS[0], ([*DAYS[1:]], [DAYS[0]])),
    ],
)
def test_selection(folder: Path, train: str, evaluate: str, expected: tuple[list[str], list[str]]) -> None:
    data = make_data(folder, segments=train, eval_segments=evaluate)
    assert names(find_segments(data)) == expected


def test_training_on_what_is_evaluated_is_said(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        find_segments(make_data(folder, segments="..", eval_segments=DAYS[0]))
    assert "both trained on and evaluated on" in caplog.text


def test_files_are_sorted_and_hidden_ones_left_out(folder: Path) -> None:
    [first, *_] = list_segments(str(folder))
    assert [Path(file).name for file in first.files] == ["part-0.parquet", "part-1.parquet"]


def test_a_file_a_plain_folder_and_globs(folder: Path) -> None:
    day = folder / f"dt={DAYS[0]}"
    for path, segments, files in (
        (day / "part-0.parquet", ["all"], 1),
        (day, ["all"], 2),
        (day / "*-1.parquet", ["all"], 1),
        (folder / "dt=2026-11-1[34]", [*DAYS[:2]], 4),
        (folder / "dt=*" / "part-0.*", [*DAYS], 3),
    ):
        found = list_segments(str(path))
        assert [s.name for s in found] == segments
        assert sum(len(s.files) for s in found) == files


def test_uris_are_read_through_their_file_system(folder: Path) -> None:
    found = list_segments(f"file://{folder}")
    assert [s.name for s in found] == [*DAYS]
    assert found[0].files[0] == f"file://{folder}/dt={DAYS[0]}/part-0.parquet"
    with open_file(found[0].files[0]) as file:
        assert pq.read_metadata(file).num_rows == 3
    assert check_files(make_schema(), found) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rows": "nowhere"}, "no Parquet file"),
        ({"rows": "gopher://x/y"}, "cannot be listed"),
        ({"segments": "2030-01-01.."}, "names none of the segments there: 2026-11-13"),
        ({"eval_segments": "x"}, "data.eval_segments = 'x'"),
        ({"eval_segments": ".."}, "to train on"),
    ],
)
def test_a_selection_of_nothing_is_an_error(folder: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        find_segments(make_data(**({"rows": folder} | changes)))
    assert all(line.count(" → ") == 2 for line in caught.value.problems)


def test_a_file_beside_hive_folders_is_an_error(tmp_path: Path) -> None:
    write_rows(tmp_path / "dt=1" / "a.parquet", make_rows(1, 0))
    write_rows(tmp_path / "b.parquet", make_rows(1, 0))
    with pytest.raises(DataError, match="beside hive folders"):
        list_segments(str(tmp_path))


def test_good_files_have_no_problems(folder: Path) -> None:
    for schema in (make_schema(), make_history_schema()):
        assert check_files(schema, list_segments(str(folder))) == []


def test_all_faults_of_all_files_come_back_at_once(tmp_path: Path) -> None:
    table = to_table(make_rows(4, 0))
    wrong = table.drop_columns(["item", "late"] if "late" in table.column_names else ["item"])
    wrong = wrong.set_column(wrong.column_names.index("time"), "time", pa.array(["x"] * 4))
    wrong = wrong.set_column(wrong.column_names.index("click"), "click", pa.array([1] * 4))
    wrong = wrong.set_column(wrong.column_names.index("words"), "words", pa.array([["x"]] * 4))
    for name, content in (("a", table), ("b", wrong), ("c", wrong)):
        pq.write_table(content, tmp_path / f"{name}.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "d.parquet").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "e.parquet").touch()
    segments = list_segments(str(tmp_path))
    (tmp_path / "f.parquet").write_bytes(whole)
    segments = list_segments(str(tmp_path))
    (tmp_path / "f.parquet").unlink()
    problems = check_files(make_schema(), segments)
    for words in (
        "d.parquet' is truncated or no Parquet file",
        "e.parquet' is empty",
        "f.parquet' does not exist",
        "column 'item' is missing in 2 files, first",
        "column 'time' is string in 2 files, first",
        "column 'click' is int64 in 2 files, first",
        "column 'words' is list<element: string> in 2 files, first",
    ):
        assert sum(words in line for line in problems) == 1, words
    assert len(problems) == 7
    assert all(line.count(" → ") == 2 for line in problems)
    with pytest.raises(DataError) as caught:
        read_footers(segments[0].files)
    assert len(caught.value.problems) == 3


def test_a_segment_without_rows_is_named(tmp_path: Path) -> None:
    write_rows(tmp_path / "dt=1" / "a.parquet", [])
    [line] = check_files(make_schema(), list_segments(str(tmp_path)))
    assert line.startswith("segment '1' has no rows")


def test_excluded_segments_are_not_there(tmp_path: Path) -> None:
    for day in DAYS:
        write_rows(tmp_path / f"dt={day}" / "part-0.parquet", make_rows(2, seed=1))
    for exclude, train, held_out in (
        ((DAYS[2],), [DAYS[0]], [DAYS[1]]),  # the last that is left is the evaluation's
        ((DAYS[0], "absent"), [DAYS[1]], [DAYS[2]]),
        (("2026-11-1[4]",), [DAYS[0]], [DAYS[2]]),
    ):
        found = find_segments(make_data(tmp_path, exclude=exclude))
        assert ([s.name for s in found.train], [s.name for s in found.eval]) == (train, held_out)
    with pytest.raises(DataError, match="leaves none of the"):
        find_segments(make_data(tmp_path, exclude=("*",)))
