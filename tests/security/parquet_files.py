"""Parquet files, spoiled: bytes of footers and pages, columns of other types and values, names that are none; through
`data inspect`, the check of the files, and reading every row, with bad rows refused and set aside."""

from __future__ import annotations

import decimal
import shutil
import tomllib
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from pipelines.carry import carry_window
from pipelines.errors import DataError
from pipelines.footers import check_files
from pipelines.segments import find_segments
from pipelines.windows import Pass
from tests.pipelines.rows import make_data, make_rows, make_schema, to_table
from tests.security.mutations import NUMBERS, TEXTS, spoiled_bytes
from tests.security.watched import outcome
from trainer.cli import cli

ROWS = 12
SCHEMA = make_schema()
INT64 = st.integers(-(2**63), 2**63 - 1)
FLOAT = st.one_of(st.floats(), st.sampled_from([float(n) for n in NUMBERS]))
TEXT = st.one_of(st.text(max_size=5), st.sampled_from(TEXTS))
# Of each type: how a value is drawn. None is drawn besides.
TYPES: list[tuple[pa.DataType, st.SearchStrategy[Any]]] = [
    (pa.int8(), st.integers(-128, 127)),
    (pa.uint64(), st.integers(0, 2**64 - 1)),
    (pa.int64(), st.one_of(INT64, st.sampled_from([-1, 0, 1, 2**62, -(2**63)]))),
    (pa.bool_(), st.booleans()),
    (pa.float16(), st.floats(width=16).map(float)),
    (pa.float32(), st.floats(width=32)),
    (pa.float64(), FLOAT),
    (pa.string(), TEXT),
    (pa.large_string(), TEXT),
    (pa.binary(), st.binary(max_size=4)),
    (pa.binary(3), st.binary(min_size=3, max_size=3)),
    (pa.null(), st.none()),
    (pa.timestamp("ns"), INT64),
    (pa.timestamp("s", "Europe/Berlin"), st.integers(-(2**40), 2**40)),
    (pa.timestamp("us"), INT64),
    (pa.date32(), st.integers(-(2**31), 2**31 - 1)),
    (pa.time64("us"), st.integers(0, 86_399_999_999)),
    (pa.duration("us"), INT64),
    (pa.decimal128(12, 3), st.integers(-(10**11), 10**11).map(lambda n: decimal.Decimal(n).scaleb(-3))),
    (pa.dictionary(pa.int32(), pa.string()), TEXT),
    (pa.struct([("a", pa.int64()), ("b/c", pa.string())]), st.fixed_dictionaries({"a": INT64, "b/c": TEXT})),
    (pa.map_(pa.string(), pa.int64()), st.lists(st.tuples(TEXT, INT64), max_size=2)),
]  # fmt: skip


@lru_cache(maxsize=1)
def _table() -> pa.Table:
    return to_table(make_rows(ROWS, 3))


@lru_cache(maxsize=1)
def _content() -> bytes:
    return _file(_table())


def prepare(folder: Path) -> None:
    """Compiles and imports what reading needs, before anything is watched."""
    codes: Counter[int] = Counter()
    check(_content(), folder, codes)
    assert codes == {0: 3}, "the file that is spoiled is a good one"


def cases() -> st.SearchStrategy[bytes]:
    """Contents of Parquet files."""
    content = _content()
    footer = int.from_bytes(content[-8:-4], "little") + 8
    return st.one_of(odd_tables().map(_file), odd_tables().map(_file), spoiled_bytes(content, tail=footer))


@st.composite
def odd_tables(draw: st.DrawFn) -> pa.Table:
    """The good rows with one to three columns of other types, lengths, values or names."""
    table = _table()
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, table.num_columns - 1))
        old = table.field(place)
        name = draw(TEXT) if draw(st.integers(0, 3)) == 0 else old.name
        kind, values = draw(st.sampled_from(TYPES))
        depth = draw(st.integers(0, 2))
        for level in range(depth):
            # Arrow's writer aborts on fixed lists of nulls or of lists, which its reader then never meets.
            fixed = level == 0 and pa.types.is_primitive(kind) and draw(st.integers(0, 4)) == 0
            size = draw(st.integers(1, 3))
            values = st.lists(
                st.one_of(values, st.none()), min_size=size if fixed else 0, max_size=size if fixed else 3
            )
            kind = pa.list_(kind, size) if fixed else draw(st.sampled_from((pa.list_, pa.large_list)))(kind)
        drawn = draw(st.lists(st.one_of(values, st.none()), min_size=ROWS, max_size=ROWS))
        if draw(st.booleans()):  # the type that is wanted, and other values
            kind, drawn = old.type, table[place].to_pylist()
            drawn[draw(st.integers(0, ROWS - 1))] = None
            drawn[draw(st.integers(0, ROWS - 1))] = draw(_like(kind))
        try:
            table = table.set_column(place, name, pa.array(drawn, kind))
        except (pa.ArrowException, OverflowError, ValueError):  # a value that this type cannot hold
            continue
    return table


def _like(kind: pa.DataType) -> st.SearchStrategy[Any]:
    """A value of an Arrow type that the good rows have."""
    if pa.types.is_fixed_size_list(kind):
        return st.lists(_like(kind.value_type), min_size=kind.list_size, max_size=kind.list_size)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return st.lists(st.one_of(_like(kind.value_type), st.none()), max_size=6)
    if pa.types.is_integer(kind):
        bits = kind.bit_width - 1
        return st.one_of(st.integers(-(2**bits), 2**bits - 1), st.sampled_from([-(2**bits), 2**bits - 1, 0, 1]))
    if pa.types.is_floating(kind):
        return FLOAT
    return st.booleans() if pa.types.is_boolean(kind) else TEXT


def _file(table: pa.Table) -> bytes:
    """In two row groups. Types that Parquet cannot hold come out as strings of their values."""
    while True:
        sink = pa.BufferOutputStream()
        try:
            pq.write_table(table, sink, row_group_size=7)
            return sink.getvalue().to_pybytes()
        except (pa.ArrowException, ValueError, OverflowError):
            table = _table()


def check(case: bytes, folder: Path, codes: Counter[int] | None = None) -> None:
    """Three verbs' worth."""
    root = folder / "case"
    shutil.rmtree(root, ignore_errors=True)
    (root / "rows").mkdir(parents=True)
    path = root / "rows" / "part-0.parquet"
    path.write_bytes(case)
    draft = root / "draft.toml"
    inspect = ["data", "inspect", str(path), "--write-schema", str(draft)]
    if outcome(lambda: cli.main(inspect, prog_name="tokenformer", standalone_mode=False), root, codes) == 0:
        tomllib.loads(draft.read_text(encoding="utf-8"))
    outcome(_read(root, "fail"), root, codes)
    outcome(_read(root, "quarantine"), root, codes)


def _read(root: Path, on_bad_row: str) -> Callable[[], None]:
    data = make_data(root / "rows", segments="..", on_bad_row=on_bad_row)

    def read() -> None:
        segments = find_segments(data).train
        if problems := check_files(SCHEMA, segments, quarantine=on_bad_row == "quarantine"):
            raise DataError(problems)
        quarantine = str(root / "quarantine") if on_bad_row == "quarantine" else ""
        pass_ = Pass(SCHEMA, data, segments, seed=1, quarantine=quarantine)
        for window in pass_.windows_from():
            carry_window(window, pass_.reading, 2, [0, 1])

    return read
