"""A manifest feeds what the folder of its files would, in any of its forms, and is held against the files."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.errors import DataError
from pipelines.footers import check_files
from pipelines.manifest import Entry, read_manifest
from pipelines.segments import find_segments, list_segments
from pipelines.windows import Pass
from tests.pipelines.rows import make_data, make_schema, write_segments

pytestmark = pytest.mark.timeout(60)
ROWS: list[dict[str, Any]] = [
    {"path": "dt=2/part-0.parquet", "rows": 4, "segment": "2"},
    {"path": "dt=1/part-1.parquet", "rows": 9, "segment": "1"},
    {"path": "dt=1/part-0.parquet", "rows": None, "segment": "1"},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_segments(tmp_path / "rows", {"1": [7, 9], "2": [4]})


def write(path: Path, entries: list[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(name for entry in entries for name in entry))
    if path.suffix == ".json":
        path.write_text(json.dumps(entries))
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(entry) + "\n" for entry in entries) + "\n")
    elif path.suffix == ".csv":
        lines = [",".join("" if entry.get(n) is None else str(entry[n]) for n in names) for entry in entries]
        path.write_text("\n".join([",".join(names), *lines]))
    else:
        pq.write_table(pa.Table.from_pylist(entries), path)
    return str(path)


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv", "parquet"])
def test_every_form_lists_the_same_files_in_its_order(folder: Path, suffix: str) -> None:
    path = write(folder / f"manifest.{suffix}", ROWS)
    expected = [Entry(f"{folder}/{entry['path']}", entry["rows"], entry["segment"]) for entry in ROWS]
    assert read_manifest(path) == expected
    assert read_manifest(f"file://{path}") == [
        Entry(f"file://{entry.path}", entry.rows, entry.segment) for entry in expected
    ]
    bare = write(folder / f"bare.{suffix}", [{"path": entry["path"]} for entry in ROWS])
    assert read_manifest(bare) == [Entry(entry.path) for entry in expected]


def test_paths_are_relative_to_the_manifest_absolute_or_uris(tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    paths = ["a.parquet", "../rows/b.parquet", "/data/c.parquet", "s3://bucket/d.parquet?region=eu"]
    path = write(tmp_path / "lists" / "m.json", [{"path": path} for path in paths])
    local = [f"{tmp_path}/lists/a.parquet", f"{tmp_path}/rows/b.parquet", "/data/c.parquet"]
    found = read_manifest(path)
    assert found is not None
    assert [entry.path for entry in found] == [*local, paths[3]]
    found = read_manifest(f"file://{path}")
    assert found is not None
    assert [entry.path for entry in found] == [*(f"file://{path}" for path in local), paths[3]]


def test_data_is_no_manifest(folder: Path, tmp_path: Path) -> None:
    assert read_manifest(str(folder)) is None
    assert read_manifest(str(folder / "dt=1" / "part-0.parquet")) is None
    assert read_manifest(str(tmp_path / "absent.json")) is None
    pq.write_table(pa.table({"path": ["x"], "user": [1]}), tmp_path / "log.parquet")
    assert read_manifest(str(tmp_path / "log.parquet")) is None
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    assert read_manifest(str(tmp_path / "broken.parquet")) is None


def test_segments_and_batches_are_those_of_the_folder(folder: Path) -> None:
    ordered = sorted(ROWS, key=lambda entry: str(entry["path"]))
    path = write(folder / "m.jsonl", ordered)
    plain = list_segments(str(folder))
    listed = list_segments(path)
    assert [(s.name, s.files) for s in listed] == [(s.name, s.files) for s in plain]
    assert check_files(make_schema(), listed) == []
    assert [s.name for s in find_segments(make_data(path)).train] == ["1"]
    windows = [
        list(Pass(make_schema(), make_data(p), s, 3).windows_from()) for p, s in ((path, listed), (folder, plain))
    ]
    assert windows[0] == windows[1]
    [only] = list_segments(write(folder / "bare.csv", [{"path": entry["path"]} for entry in ROWS]))
    assert (only.name, [Path(file).name for file in only.files]) == (
        "all",
        ["part-0.parquet", "part-1.parquet", "part-0.parquet"],
    )


def test_rows_are_held_against_the_footers(folder: Path) -> None:
    wrong = [ROWS[0] | {"rows": 5}, ROWS[1] | {"rows": 8}, ROWS[2]]
    lines = check_files(make_schema(), list_segments(write(folder / "m.json", wrong)))
    assert len(lines) == 2
    assert any("4 rows, 5 by its manifest" in line for line in lines)
    assert all(line.count("→") == 2 for line in lines)
    gone = [*ROWS, {"path": "dt=2/gone.parquet", "rows": 1, "segment": "2"}]
    [line] = check_files(make_schema(), list_segments(write(folder / "g.json", gone)))
    assert "gone.parquet" in line


def test_all_wrong_entries_are_told_at_once(tmp_path: Path) -> None:
    entries: list[Any] = [
        {"path": "a.parquet", "rows": 1, "segment": "x"},
        {"path": "./a.parquet", "rows": 1, "segment": "x"},
        {"rows": 1},
        {"path": 3},
        {"path": "b", "rows": -1},
        {"path": "c", "rows": True},
        {"path": "d", "rows": "many"},
        {"path": "e", "segment": "a/b"},
        {"path": "f", "segment": ""},
        {"path": "g", "size": 3},
        "h",
        {"path": "i.parquet"},
    ]
    (tmp_path / "m.json").write_text(json.dumps(entries))
    with pytest.raises(DataError) as error:
        read_manifest(str(tmp_path / "m.json"))
    assert len(error.value.problems) == 11
    for line in error.value.problems:
        assert line.count("→") == 2, line
    for number in range(2, 12):
        assert f"entry {number}:" in str(error.value)
    assert "1 of 2 files have no segment" in error.value.problems[-1]

    (tmp_path / "long.json").write_text(json.dumps([{"rows": 1}] * 1000))
    with pytest.raises(DataError) as error:
        read_manifest(str(tmp_path / "long.json"))
    assert len(error.value.problems) == 51
    assert "950 more" in error.value.problems[-1]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("m.json", "[{"),
        ("m.json", "[]"),
        ("m.json", '{"path": "a"}'),
        ("m.jsonl", '{"path": "a"}\n{"pa'),
        ("m.jsonl", ""),
        ("m.csv", "path,rows\na,x\n"),
        ("m.csv", 'path\n"a'),
        ("m.csv", "path\na,1\n"),
        ("m.csv", ""),
        ("m.csv", b"path\n\xff\n"),
    ],
)
def test_a_manifest_that_is_none_is_a_line(tmp_path: Path, name: str, content: str | bytes) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as error:
        list_segments(str(tmp_path / name))
    [line] = error.value.problems
    assert line.count("→") == 2
    assert name in line
    assert "\n" not in line


def test_a_segment_may_be_a_date(tmp_path: Path) -> None:
    table = pa.table({"path": ["a", "b"], "segment": pa.array([date(2026, 11, 20), date(2026, 11, 21)])})
    pq.write_table(table, tmp_path / "m.parquet")
    assert [s.name for s in list_segments(str(tmp_path / "m.parquet"))] == ["2026-11-20", "2026-11-21"]
