"""A plan without processes: what it puts where, what it keeps to, and how it is given back."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from embeddings.config import Embeddings
from embeddings.errors import PlanError
from embeddings.plan import make_placement, make_plan, report
from embeddings.plan_boxes import from_torchrec
from embeddings.plan_load import Codecs, StepIds, total_load, wire_bytes
from embeddings.plan_report import PlanReport
from embeddings.specs import TableSpec
from embeddings.tables import Tables
from tests.embeddings.specs import spec

SPECS = {
    s.name: s
    for s in [
        spec("big", 1_000_000, 16, "row_wise"),
        spec("tags", 1000, 16, "table_wise"),
        spec("wide", 600, 16, "column_wise"),
        spec("vocab", 640, 8, "row_wise", mapping="vocabulary", buckets=64),
        spec("any", 500, 8, "auto"),
    ]
}
MIB = 1 << 20


def changed(specs: dict[str, TableSpec], **changes: object) -> dict[str, TableSpec]:
    return {name: replace(spec, **changes) for name, spec in specs.items()}  # type: ignore[arg-type]


def report_of(
    world_size: int,
    config: Embeddings | None = None,
    device: str = "cpu",
    memory: int = 0,
    specs: dict[str, TableSpec] = SPECS,
    ids: StepIds | None = None,
) -> PlanReport:
    config = config or Embeddings()
    placement = make_placement(specs, world_size, 0, device, config, ids, memory)
    return report(placement, specs, config, world_size, ids)


@pytest.mark.parametrize(("world_size", "device"), [(1, "cpu"), (2, "cpu"), (3, "cpu"), (8, "cuda"), (100, "cuda")])
def test_a_plan_places_every_byte_once_at_any_world_size(world_size: int, device: str) -> None:
    planned = report_of(world_size, device=device)
    assert [table.name for table in planned.tables] == list(SPECS)
    for table in planned.tables:
        assert sum(table.weight_bytes) == 4 * table.rows * table.width, table.name
        asked = SPECS[table.name].sharding
        assert table.sharding == asked or (asked == "auto" and table.sharding in {"table_wise", "row_wise"})


def test_shards_of_a_vocabulary_are_whole_buckets() -> None:
    (vocab,) = [table for table in report_of(3).tables if table.name == "vocab"]
    assert vocab.weight_bytes == [22 * 10 * 8 * 4, 22 * 10 * 8 * 4, 20 * 10 * 8 * 4]


@pytest.mark.parametrize(
    ("width", "world_size", "shards"), [(16, 2, 2), (16, 3, 2), (64, 8, 8), (24, 4, 3), (12, 2, 3)]
)
def test_column_shards_are_even_and_on_ranks_of_their_own(width: int, world_size: int, shards: int) -> None:
    """Even where other tables make one rank the emptiest by far; 3 shards on 2 ranks share as evenly as can be."""
    specs = {s.name: s for s in (spec("c", 5000, width, "column_wise"), spec("heavy", 10**6, 16, "table_wise"))}
    boxes = make_placement(specs, world_size)["c"].boxes
    assert [box.columns for box in boxes] == [width // shards] * shards
    counts = [sum(box.rank == rank for box in boxes) for rank in range(world_size)]
    assert max(counts) == -(-shards // world_size)


def test_a_table_lies_on_the_ranks_it_is_given() -> None:
    specs = {
        "a": replace(spec("a", 5000, 16, "table_wise"), ranks=(3,)),
        "b": replace(spec("b", 5000, 16, "column_wise"), ranks=(1, 2)),
        "c": replace(spec("c", 5000, 16, "auto"), ranks=(0, 1)),
        **{f"t{n}": spec(f"t{n}", 900_000, 16, "table_wise") for n in range(4)},
    }
    placement = make_placement(specs, 4)
    assert [box.rank for box in placement["a"].boxes] == [3]
    assert {box.rank for box in placement["b"].boxes} == {1, 2}
    assert placement["c"].sharding == "table_wise"
    assert placement["c"].boxes[0].rank in (0, 1)
    with pytest.raises(PlanError, match="ranks = \\[3\\] → there are ranks 0 to 1"):
        make_placement(specs, 2)


def test_equal_tables_are_spread_evenly_and_a_giant_over_all_ranks() -> None:
    equal = {f"t{n}": spec(f"t{n}", 10_000, 16, "auto") for n in range(16)}
    assert report_of(8, specs=equal).balance["memory"] == pytest.approx(1)
    giant = equal | {"giant": spec("giant", 10**8, 16, "auto")}
    planned = report_of(8, specs=giant)
    assert {t.name: t.sharding for t in planned.tables}["giant"] == "row_wise"
    assert planned.balance["memory"] < 1.02


def test_a_thousand_tables_on_a_cluster_are_planned_in_seconds() -> None:
    specs = {f"t{n}": spec(f"t{n}", 1000 + 997 * n, 16, "auto") for n in range(1000)}
    began = time.process_time()
    planned = report_of(128, device="cuda", memory=10**9, specs=specs)
    assert time.process_time() - began < 20
    assert planned.balance["memory"] < 1.2


def test_kernels_of_cuda_are_refused_on_cpu_and_put_rows_on_the_host() -> None:
    hosted = SPECS | {"big": replace(SPECS["big"], kernel="fused_uvm_caching")}
    with pytest.raises(PlanError, match=r"kernel = 'fused_uvm_caching' on cpu → only CUDA"):
        report_of(2, specs=hosted)
    planned, plain = report_of(2, device="cuda", specs=hosted), report_of(2, device="cuda")
    rows, state = 500_000 * 16 * 4, 500_000 * 4
    assert planned.load.host.tolist() == [rows + state] * 2
    assert (plain.load.device - planned.load.device).tolist() == pytest.approx([0.8 * rows + state] * 2)
    assert any("on the host" in line for line in planned.lines())


@pytest.mark.parametrize(
    ("optimizer", "dtype", "expected"),
    [("sgd", "fp32", 64), ("adagrad", "fp16", 32 + 64), ("rowwise_adagrad", "fp32", 64 + 4),
     ("adam", "bf16", 32 + 128), ("rowwise_adam", "fp16", 32 + 64 + 4)],
)  # fmt: skip
def test_rows_and_state_are_counted_as_they_are_kept(optimizer: str, dtype: str, expected: int) -> None:
    planned = report_of(2, specs=changed(SPECS, optimizer=optimizer, dtype=dtype))
    by_name = {table.name: sum(table.bytes) for table in planned.tables}
    assert by_name["tags"] == 1000 * expected
    per_shard = {"rowwise_adagrad": 4, "rowwise_adam": 4}.get(optimizer, 0)
    assert by_name["wide"] == 600 * (expected + per_shard), "row-wise state is once a column shard"


def test_bytes_moved_in_a_step_are_those_of_the_ids() -> None:
    """2 ranks, 100 ids each, 150 of them distinct: the one that holds the table reads 200 rows and sends 100."""
    one = {"t": replace(spec("t", 1000, 16, "table_wise"), ranks=(1,), dtype="fp16")}
    ids = StepIds({"t": 100.0}, {"t": 150.0}, "")
    load = total_load(make_placement(one, 2, ids=ids), one, ids, 2, Codecs("fp16", "int8"))
    assert load.lookup.tolist() == [0, 200 * 16 * 2]
    assert load.update.tolist() == [0, 2 * 150 * (16 * 2 + 4)]
    assert load.rows_sent.tolist() == [0, 100 * 32]
    assert load.rows_received.tolist() == [100 * 32, 0]
    assert load.gradients_sent.tolist() == [100 * (16 + 8), 0]
    assert load.gradients_received.tolist() == [0, 100 * (16 + 8)]
    assert wire_bytes("bf16", 16) == 32
    spread = {"t": replace(one["t"], sharding="row_wise", ranks=())}
    load = total_load(make_placement(spread, 2, ids=ids), spread, ids, 2, Codecs("fp16", "int8"))
    assert load.rows_sent.tolist() == load.rows_received.tolist() == [50 * 32, 50 * 32]
    assert load.lookup.tolist() == [100 * 32, 100 * 32]


def test_the_report_is_an_aligned_table_and_plain_json() -> None:
    planned = report_of(2)
    lines = planned.lines()
    assert len(lines) == 1 + len(SPECS) + 1 + 1 + 2 + 1 + 2
    (big,) = [line for line in lines if line.startswith("big")]
    assert " ".join(big.split()) == (
        "big 1,000,000 16 fp32 rowwise_adagrad hash row_wise fused 0–1 61.0 MiB 3.8 MiB 4,096"
    )
    starts = [line.index("fp32") for line in lines[1 : 1 + len(SPECS)]]
    assert all(a == b for a, b in pairwise(starts))
    assert planned.to_json() == json.loads(json.dumps(planned.to_json()))
    assert planned.to_json()["rank_bytes"] == planned.bytes
    assert sum(planned.bytes) == sum(sum(table.bytes) for table in planned.tables)
    shown = [line for line in report_of(200, device="cuda").lines() if line.startswith("rank ")]
    assert len(shown) == 16, "of many ranks the fullest and the emptiest"


def test_groups_of_ranks_hold_all_tables_each() -> None:
    planned = report_of(6, Embeddings(replicas=3, replica_sync_steps=4))
    assert planned.size == 2
    assert planned.bytes == report_of(2).bytes
    assert any("3 groups of 2 ranks" in line and "every 4 step" in line for line in planned.lines())
    with pytest.raises(PlanError, match=r"replicas = 4 on 6 ranks.*→ 3 group"):
        report_of(6, Embeddings(replicas=4))


def test_the_same_model_gives_the_same_plan() -> None:
    assert report_of(3).to_json() == report_of(3).to_json()


def test_what_torchrec_is_given_says_the_same() -> None:
    plan = make_plan(Tables(SPECS), SPECS, 3)
    assert from_torchrec(plan, SPECS) == make_placement(SPECS, 3)
    assert all(parameter.device == torch.device("meta") for parameter in Tables(SPECS).parameters())


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A plan of 3 ranks that would not be chosen: `any` on the last rank."""
    pinned = SPECS | {"any": replace(SPECS["any"], sharding="table_wise", ranks=(2,))}
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(report_of(3, specs=pinned).to_json()))
    return path


def test_a_saved_plan_is_given_back(saved: Path) -> None:
    assert make_placement(SPECS, 3)["any"].boxes[0].rank != 2
    again = make_placement(SPECS, 3, config=Embeddings(plan=str(saved)))
    assert again["any"].boxes[0].rank == 2
    assert report(again, SPECS, Embeddings(), 3).to_json() == json.loads(saved.read_text())


def _refused(path: Path, match: str, world_size: int = 3, specs: dict[str, TableSpec] = SPECS) -> None:
    with pytest.raises(PlanError, match=match) as caught:
        make_placement(specs, world_size, config=Embeddings(plan=str(path)))
    assert len(caught.value.problems) == 1, "one line"
    assert caught.value.problems[0].count("→") == 2


def test_a_saved_plan_of_something_else_is_refused_in_one_line(saved: Path, tmp_path: Path) -> None:
    _refused(saved, r"for 3 ranks in 1 group\(s\), this run has 2", world_size=2)
    wider = SPECS | {"tags": replace(SPECS["tags"], width=32), "more": spec("more", 10, 8, "auto")}
    _refused(saved, r"of other tables: more is not in it; tags has 1,000 × 16", specs=wider)
    _refused(saved, "is row_wise, the run file asks for table_wise",
             specs=SPECS | {"big": replace(SPECS["big"], sharding="table_wise")})  # fmt: skip
    _refused(tmp_path / "none.json", "cannot be read: No such file")
    text = saved.read_text()
    for name, other, match in (
        ("grid", text.replace('"table_wise"', '"grid_shard"', 1), "the nearest is 'column_wise'"),
        ("rank", text.replace('"rank": 2, "row": 0, "rows": 500', '"rank": 3, "row": 0, "rows": 500'), "on rank 3"),
        ("rows", text.replace('"rows": 333334, "column"', '"rows": 333333, "column"', 1), "not those of a row_wise"),
        ("format", text.replace('"format": 1', '"format": 2'), "has format 2"),
        ("half", text[:100], "is no plan"),
        ("list", "[]", "is no plan"),
    ):
        path = tmp_path / name
        assert other != text
        path.write_text(other)
        _refused(path, match)
