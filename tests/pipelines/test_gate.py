"""Ordinary days pass, broken ones do not, and the line says which column and what to do."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipelines.config import Gate, GateColumn, Synth
from pipelines.gate import Finding, judge
from pipelines.gate_distance import psi, unknown_share
from pipelines.profile import profile_segment
from pipelines.profile_format import SegmentProfile
from pipelines.schema import Column, Schema, Task
from pipelines.segments import Segment, list_segments
from pipelines.synth import write_log

pytestmark = pytest.mark.timeout(90)

KINDS: dict[str, dict[str, Any]] = {
    "user_id": {"role": "user", "kind": "id"},
    "country": {"role": "user", "kind": "id"},
    "device": {"role": "user", "kind": "id"},
    "age": {"role": "user", "kind": "dense"},
    "hour": {"role": "context", "kind": "id"},
    "request_id": {"role": "request", "kind": "id"},
    "time": {"role": "time", "kind": "time"},
    "item_id": {"role": "item", "kind": "id"},
    "category": {"role": "item", "kind": "id"},
    "author": {"role": "item", "kind": "id"},
    "click": {"role": "label", "kind": "dense"},
    "purchase": {"role": "label", "kind": "dense"},
}
SCHEMA = Schema(
    user="user_id",
    columns={name: Column(**spec) for name, spec in KINDS.items()},
    tasks={"click": Task(label="click"), "purchase": Task(label="purchase", space="click")},
)


def profile(table: pa.Table, path: Path, name: str, schema: Schema = SCHEMA) -> SegmentProfile:
    pq.write_table(table, path)
    return profile_segment(Segment(name, (str(path),)), schema, 0)


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, pa.Table]]:
    """Four days of a synthetic log, an event a row."""
    folder = tmp_path_factory.mktemp("log")
    write_log(Synth(events=40_000, users=1_500, items=1_000, days=4, seed=3), folder / "log")
    return [(s.name, pq.read_table(s.files[0])) for s in list_segments(str(folder / "log"))]


@pytest.fixture(scope="module")
def profiles(days: list[tuple[str, pa.Table]], tmp_path_factory: pytest.TempPathFactory) -> list[SegmentProfile]:
    folder = tmp_path_factory.mktemp("days")
    return [profile(table, folder / f"{name}.parquet", name) for name, table in days]


def tripped(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.tripped]


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("events", [8_000, 60_000])
def test_ordinary_days_pass(tmp_path: Path, seed: int, events: int) -> None:
    write_log(Synth(events=events, users=events // 40, items=1_000, days=6, seed=seed), tmp_path / "log")
    before: list[SegmentProfile] = []
    for segment in list_segments(str(tmp_path / "log")):
        now = profile_segment(segment, SCHEMA, 5_000)
        assert tripped(judge(now, before, Gate(), SCHEMA)) == [], segment.name
        before.append(now)
    assert len(before) == 6


def plant(table: pa.Table, name: str, share: float, value: Any, seed: int = 0) -> pa.Table:
    """`value` in a share of the rows of one column."""
    kind = table[name].type
    fill = pa.scalar(value, kind) if not pa.types.is_string(kind) else pa.scalar(None if value is None else str(value))
    if pa.types.is_timestamp(kind) and value is not None:
        fill = pa.scalar(value * 10**6, pa.int64()).cast(kind)
    chosen = pa.array(np.random.default_rng(seed).random(len(table)) < share)
    return table.set_column(table.column_names.index(name), name, pc.if_else(chosen, fill, table[name]))


@pytest.mark.parametrize("name", KINDS)
def test_a_minus_one_in_a_twentieth_of_any_column_trips_and_is_named(
    days: list[tuple[str, pa.Table]], profiles: list[SegmentProfile], tmp_path: Path, name: str
) -> None:
    day, table = days[3]
    spoilt = profile(plant(table, name, 0.05, -1), tmp_path / "p.parquet", day)
    found = tripped(judge(spoilt, profiles[:3], Gate(), SCHEMA))
    assert found[0].where == f"column '{name}'"
    assert found[0].rule == "max_sentinel_increase"
    assert {finding.where for finding in found} == {f"column '{name}'"}
    line = found[0].line(day, 3)
    assert f"segment '{day}': column '{name}'" in line
    assert "0.00% in the 3 before → data.gate.max_sentinel_increase = 0.02 → mend" in line
    assert f"data.gate.columns.{name}.max_sentinel_increase" in line


def numbers(table: pa.Table, name: str, change: Callable[[pa.ChunkedArray], pa.ChunkedArray]) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, change(table[name]))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("events", [8_000, 60_000])
def test_no_false_alarm_and_no_miss_over_a_dozen_logs(tmp_path: Path, events: int) -> None:
    """The figures of docs/data-quality.md."""
    for seed in range(10, 22):
        folder = tmp_path / str(seed)
        write_log(Synth(events=events, users=events // 40, items=1_000, days=6, seed=seed), folder)
        segments, before = list_segments(str(folder)), []
        for segment in segments:
            before.append(profile_segment(segment, SCHEMA))
            assert tripped(judge(before[-1], before[:-1], Gate(), SCHEMA)) == [], (seed, segment.name)
        last = pq.read_table(segments[-1].files[0])
        for name in KINDS:
            spoilt = profile(plant(last, name, 0.05, -1, seed), tmp_path / "spoilt.parquet", "spoilt")
            assert tripped(judge(spoilt, before[:-1], Gate(), SCHEMA))[0].where == f"column '{name}'", (seed, name)


FAULTS: dict[str, tuple[Callable[[pa.Table], pa.Table], str, str]] = {
    "nulls": (lambda t: plant(t, "device", 0.1, None), "column 'device'", "max_null_increase"),
    "NaN": (lambda t: numbers(t, "age", lambda c: pc.if_else(pc.less(c, 30), math.nan, pc.cast(c, pa.float64()))),
            "column 'age'", "max_null_increase"),
    "a unit changed": (lambda t: numbers(t, "age", lambda c: pc.multiply(c, 12)), "column 'age'", "max_psi"),
    "ids counted anew": (lambda t: numbers(t, "item_id", lambda c: pc.add(c, 10**6)),
                         "column 'item_id'", "max_unknown_increase"),
    "one value everywhere": (lambda t: plant(t, "author", 0.3, "author-9999"), "column 'author'", "max_value_increase"),
    "shares moved": (lambda t: plant(t, "country", 0.6, "US"), "column 'country'", "max_psi"),
    "clicks lost": (lambda t: plant(t, "click", 0.8, 0), "task 'click'", "max_label_rate_change"),
    "half a day": (lambda t: t.slice(0, len(t) // 5), "", "min_rows_share"),
    "a day twice": (lambda t: pa.concat_tables([t] * 5), "", "max_rows_share"),
    "no column": (lambda t: t.drop_columns(["hour"]), "column 'hour'", "max_coverage_drop"),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "where", "rule"), FAULTS.values(), ids=FAULTS.keys())
def test_faults_trip_the_rule_for_them(
    days: list[tuple[str, pa.Table]],
    profiles: list[SegmentProfile],
    tmp_path: Path,
    spoil: Callable[[pa.Table], pa.Table],
    where: str,
    rule: str,
) -> None:
    day, table = days[3]
    now = profile(spoil(table), tmp_path / "p.parquet", day)
    found = tripped(judge(now, profiles[:3], Gate(), SCHEMA))
    assert (where, rule) in [(finding.where, finding.rule) for finding in found]
    off = Gate(**{rule: 0.0 if rule == "min_rows_share" else math.inf})
    assert (where, rule) not in [(f.where, f.rule) for f in tripped(judge(now, profiles[:3], off, SCHEMA))]


def test_lists_that_run_empty_trip(tmp_path: Path) -> None:
    schema = Schema(columns={"views": Column(role="item", kind="id", group="history.views")})
    rng = np.random.default_rng(0)

    def lists(mean: int) -> pa.Table:
        return pa.table({"views": [[7] * n for n in rng.poisson(mean, 2000)]})

    full, shorter, short = (profile(lists(n), tmp_path / f"{n}.parquet", str(n), schema) for n in (20, 15, 8))
    assert tripped(judge(shorter, [full], Gate(), schema)) == []
    found = tripped(judge(short, [full], Gate(), schema))
    assert [f.rule for f in found] == ["max_length_drop"]
    assert tripped(judge(full, [short], Gate(), schema)) == []  # histories grow


def test_the_first_segment_passes_and_the_last_k_are_the_references(profiles: list[SegmentProfile]) -> None:
    assert judge(profiles[0], [], Gate(), SCHEMA) == []
    first = profiles[0].model_copy(update={"rows": 10**6})
    assert tripped(judge(profiles[3], [first, *profiles[1:3]], Gate(), SCHEMA)) == []
    small = profiles[3].model_copy(update={"rows": profiles[2].rows // 4})
    found = tripped(judge(small, [small, profiles[2]], Gate(previous=1), SCHEMA))
    assert [f.rule for f in found] == ["min_rows_share"]
    assert tripped(judge(small, [small, profiles[2]], Gate(previous=2), SCHEMA)) == []


def test_one_column_has_rules_of_its_own(
    days: list[tuple[str, pa.Table]], profiles: list[SegmentProfile], tmp_path: Path
) -> None:
    now = profile(plant(days[3][1], "age", 0.05, -1), tmp_path / "p.parquet", "day")
    own = {"age": GateColumn(max_sentinel_increase=0.2)}
    assert tripped(judge(now, profiles[:3], Gate(columns=own), SCHEMA)) == []
    half = now.columns["hour"].model_copy(update={"coverage": 0.5})
    partly = now.model_copy(update={"columns": now.columns | {"hour": half}})
    before = [p.model_copy(update={"columns": p.columns | {"hour": half}}) for p in profiles[:3]]
    asked = Gate(columns=own | {"hour": GateColumn(min_coverage=0.9)})
    assert tripped(judge(partly, before, Gate(columns=own), SCHEMA)) == []
    [found] = tripped(judge(partly, before, asked, SCHEMA))
    assert "data.gate.columns.hour.min_coverage = 0.9" in found.line("day", 3)


def test_a_few_rows_prove_nothing(
    days: list[tuple[str, pa.Table]], profiles: list[SegmentProfile], tmp_path: Path
) -> None:
    """The same share of -1 that trips in thousands of rows may be chance in forty."""
    forty = days[3][1].take(pa.array(np.random.default_rng(1).permutation(len(days[3][1]))[:40]))
    few = profile(plant(forty, "age", 0.05, -1, seed=5), tmp_path / "p.parquet", "day")
    assert few.columns["age"].sentinels["-1"] > 0.02
    off = Gate(min_rows_share=0.0)
    assert tripped(judge(few, profiles[:3], off, SCHEMA)) == []


def test_the_stability_index_is_the_formula_s(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    schema = Schema(columns={"x": Column(role="context", kind="dense"), "k": Column(role="context", kind="id")})
    tables = [
        pa.table({"x": rng.normal(shift, 1, 4000), "k": rng.choice(4, 4000, p=p)})
        for shift, p in ((0.0, [0.4, 0.3, 0.2, 0.1]), (0.5, [0.3, 0.3, 0.1, 0.3]))
    ]
    before, now = (profile(t, tmp_path / f"{i}.parquet", str(i), schema) for i, t in enumerate(tables))
    xs = [t["x"].to_numpy() for t in tables]
    edges = np.quantile(xs[0], np.arange(0.1, 0.95, 0.1))
    shares = [np.bincount(np.searchsorted(edges, x), minlength=10) / 4000 for x in xs]
    found = psi(before.columns["x"], now.columns["x"], 4000, 4000)
    assert found is not None
    assert found.value == pytest.approx(np.sum((shares[1] - shares[0]) * np.log(shares[1] / shares[0])), rel=0.1)
    shares = [np.bincount(t["k"].to_numpy(), minlength=4) / 4000 for t in tables]
    found = psi(before.columns["k"], now.columns["k"], 4000, 4000)
    assert found is not None
    assert found.value == pytest.approx(np.sum((shares[1] - shares[0]) * np.log(shares[1] / shares[0])), rel=1e-6)


def test_without_a_change_the_index_stays_within_its_noise(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    schema = Schema(columns={"x": Column(role="context", kind="dense")})
    beyond = 0
    for trial in range(40):
        two = [profile(pa.table({"x": rng.exponential(1, 500)}), tmp_path / "x.parquet", "d", schema) for _ in range(2)]
        found = psi(two[0].columns["x"], two[1].columns["x"], 500, 500)
        assert found is not None, trial
        beyond += found.value > found.noise
    assert beyond <= 2


def test_the_share_of_unknown_ids_is_that_of_the_sets(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    schema = Schema(columns={"item": Column(role="item", kind="id")})
    sets = [rng.choice(40_000, 6_000, replace=False) for _ in range(3)]
    ones = [profile(pa.table({"item": s}), tmp_path / f"{i}.parquet", str(i), schema) for i, s in enumerate(sets)]
    columns = [one.columns["item"] for one in ones]
    found = unknown_share(columns[2], columns[:2])
    exact = np.mean(~np.isin(sets[2], np.concatenate(sets[:2])))
    assert found is not None
    assert abs(found.value - exact) < 4 * math.sqrt(found.variance)
    small = [profile(pa.table({"item": s[:200]}), tmp_path / "s.parquet", "s", schema).columns["item"] for s in sets]
    found = unknown_share(small[2], small[:2])
    assert found is not None
    assert found.value == np.mean(~np.isin(sets[2][:200], np.concatenate([s[:200] for s in sets[:2]])))
    assert unknown_share(replace_ids(columns[2], 5), columns[:2]) is None


def replace_ids(column: Any, count: int) -> Any:
    return column.model_copy(update={"ids": column.ids[:count]})


def test_a_line_tells_value_rule_and_remedy() -> None:
    finding = Finding("column 'a'", "share of nulls", (0.1, 0.2), 0.5, 3.0, "max_null_increase", 0.03)
    assert finding.line("d", 2).startswith(
        "segment 'd': column 'a': share of nulls is 50.00%, 10.00% … 20.00% in the 2 before → "
        "data.gate.max_null_increase = 0.03 → mend the segment, leave it out by data.exclude, raise "
        "data.gate.columns.a.max_null_increase, or set data.gate.on_fail"
    )
    assert not replace(finding, severity=1.0).tripped
