"""Ids to rows: stateless maps, and vocabularies and managed tables that are the same on 1, 2 and 3 ranks and move
between them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from embeddings.buckets import bucket_of
from embeddings.errors import IdMapError
from embeddings.idmap import IdMapper
from pipelines.batch import TableIds
from pipelines.schema import MISSING_ID
from tests.embeddings.id_stream import EVERY_ID, SAVED, SPECS, STEPS, cut, evicted_at, map_of_all, map_steps, read_whole
from tests.embeddings.specs import spec

pytestmark = pytest.mark.timeout(400)  # the ranks start inside the first test


@pytest.fixture(scope="module")
def mapped(on_ranks: dict[int, list[dict[str, Any]]], id_maps: Path) -> dict[int, list[dict[str, Any]]]:
    """{world size: what each rank was told}; world size 1 is this process."""
    results = {world_size: [rank["mapped"] for rank in ranks] for world_size, ranks in on_ranks.items()}
    one = IdMapper(SPECS)
    alone: dict[str, Any] = {"told": map_steps(one, range(STEPS), 0, 1), "map": map_of_all(one)}
    alone["evicted"] = evicted_at(one)
    loaded = IdMapper(SPECS)
    state = loaded.state()
    read_whole(state, str(id_maps / "of_3.npz"))
    loaded.load_state(state)
    alone["resumed"] = map_steps(loaded, range(SAVED + 1, STEPS), 0, 1)
    alone["resumed_map"] = map_of_all(loaded)
    return results | {1: [alone]}


def test_the_map_is_the_same_on_one_two_and_three_ranks(mapped: dict[int, list[dict[str, Any]]]) -> None:
    expected = mapped[1][0]
    known = np.array(expected["map"]["item"]) > 1
    assert 100 < known.sum() < len(EVERY_ID), "the stream teaches some ids and not others"
    for ranks in (mapped[2], mapped[3]):
        for rank in ranks:
            assert rank["map"] == expected["map"]


def test_every_step_is_told_the_same_rows_whatever_the_world_size(mapped: dict[int, list[dict[str, Any]]]) -> None:
    for ranks in (mapped[2], mapped[3]):
        for rank in ranks:
            for step, tables in enumerate(rank["told"]):
                for name, rows in tables.items():
                    assert rows.items() <= mapped[1][0]["told"][step][name].items(), (step, name)


def test_a_map_saved_ahead_of_training_resumes_at_another_world_size(mapped: dict[int, list[dict[str, Any]]]) -> None:
    """2 → 3 and 3 → 1 ranks: as of the step saved, not of those already mapped; the rest as if never stopped."""
    for world_size in (3, 1):
        for rank in mapped[world_size]:
            assert rank["resumed"] == rank["told"][SAVED + 1 :]
            assert rank["resumed_map"] == rank["map"]


def test_state_is_kept_in_whole_buckets_at_the_rank_that_holds_their_rows(
    mapped: dict[int, list[dict[str, Any]]],
) -> None:
    shards = [rank["shards"] for rank in mapped[3]]
    assert [[tuple(*each[f"user/{part}"]) for part in ("ids", "used")] for each in shards] == [
        [(3, 30), (3,)],
        [(3, 30), (3,)],
        [(1, 30), (1,)],
    ]
    assert [[tuple(shape) for shape in each["item/ids"]] for each in shards] == [[(2, 1000)], [(2, 1000)], []]
    assert [tuple(*each["query/candidate_counts"]) for each in shards] == [(3, 16), (3, 16), (1, 16)]


def test_evictions_are_the_same_whatever_the_world_size(mapped: dict[int, list[dict[str, Any]]]) -> None:
    alone = mapped[1][0]["evicted"]
    assert all(sum(map(len, steps)) > 20 for steps in alone.values()), "every policy evicts in this stream"
    for ranks in (mapped[2], mapped[3]):
        for name, steps in alone.items():
            for step, rows in enumerate(steps):
                assert sorted(row for rank in ranks for row in rank["evicted"][name][step]) == rows, (name, step)


def _table(*ids: int, counts: int = 1) -> TableIds:
    return TableIds(np.array(ids, np.int64), np.full(len(ids), counts, np.int64))


def test_new_ids_of_a_step_get_the_next_rows_of_their_bucket_in_ascending_order() -> None:
    one = {"t": spec("t", 50, 8, "row_wise", mapping="vocabulary", buckets=1)}
    mapper = IdMapper(one)
    assert mapper.rows_of({"t": _table(-7, 40, 900)}, train=True)["t"].tolist() == [2, 3, 4]
    assert mapper.rows_of({"t": _table(-9, 40, 41)}, train=True)["t"].tolist() == [5, 3, 6]


def test_an_id_has_a_row_of_its_own_bucket() -> None:
    table = spec("t", 8 * 40, 8, "row_wise", mapping="vocabulary", buckets=8)
    ids = np.arange(100)
    rows = IdMapper({"t": table}).rows_of({"t": TableIds(ids, np.ones_like(ids))}, train=True)["t"]
    assert len(set(rows.tolist())) == 100
    assert rows.min() >= 2
    assert np.array_equal(rows // 40, bucket_of(table, ids))


def test_a_full_bucket_knows_no_more_ids_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    mapper = IdMapper({"t": spec("t", 5, 8, "row_wise", mapping="vocabulary", buckets=1)})
    with caplog.at_level(logging.WARNING):
        assert mapper.rows_of({"t": _table(1, 2, 3, 4)}, train=True)["t"].tolist() == [2, 3, 4, 1]
        assert mapper.rows_of({"t": _table(3, 4, 5)}, train=True)["t"].tolist() == [4, 1, 1]
    assert sum("is full" in record.getMessage() for record in caplog.records) == 1
    assert mapper.used_rows() == {"t": 5}


def test_evaluation_fillers_and_missing_ids_teach_nothing() -> None:
    mapper = IdMapper({"t": spec("t", 50, 8, "row_wise", mapping="vocabulary", buckets=2)})
    assert mapper.rows_of({"t": _table(MISSING_ID, 5, 6)}, train=False)["t"].tolist() == [0, 1, 1]
    assert mapper.rows_of({"t": _table(MISSING_ID, 5, 6, counts=0)}, train=True)["t"].tolist() == [0, 1, 1]
    assert mapper.used_rows() == {"t": 2}


def test_a_map_of_other_buckets_is_refused_and_changes_nothing() -> None:
    saved = IdMapper({"t": spec("t", 40, 8, "row_wise", mapping="vocabulary", buckets=4)})
    mapper = IdMapper({"t": spec("t", 40, 8, "row_wise", mapping="vocabulary", buckets=2)})
    before = mapper.rows_of({"t": _table(1, 2)}, train=True)["t"].tolist()
    with pytest.raises(IdMapError, match="fixed at birth"):
        mapper.load_state(saved.state())
    with pytest.raises(IdMapError, match="no saved vocabulary"):
        mapper.load_state({})
    assert mapper.rows_of({"t": _table(1, 2)}, train=False)["t"].tolist() == before


def test_a_step_that_was_never_marked_cannot_be_saved() -> None:
    with pytest.raises(IdMapError, match="steps at hand"):
        IdMapper(SPECS).state(upto_step=4)


@given(st.lists(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=40), max_size=6))
def test_distinct_ids_keep_distinct_rows_while_there_is_room(batches: list[list[int]]) -> None:
    mapper = IdMapper({"t": spec("t", 4 * 300, 8, "row_wise", mapping="vocabulary", buckets=4)})
    known: dict[int, int] = {}
    for batch in batches:
        ids = np.unique(np.array(batch, np.int64))
        rows = mapper.rows_of({"t": TableIds(ids, np.ones_like(ids))}, train=True)["t"]
        for identifier, row in zip(ids.tolist(), rows.tolist(), strict=True):
            assert known.setdefault(identifier, row) == row
    known.pop(MISSING_ID, None)
    assert len(set(known.values())) == len(known)
    assert all(row > 1 for row in known.values())


def test_many_ids_are_found_again_after_the_index_has_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    mapper = IdMapper({"t": spec("t", 1 << 16, 8, "row_wise", mapping="vocabulary", buckets=8)})
    batches = [np.unique(np.random.default_rng(seed).integers(0, 1 << 40, 500)) for seed in range(12)]
    first = [mapper.rows_of({"t": TableIds(ids, np.ones_like(ids))}, train=True)["t"] for ids in batches]
    for ids, rows in zip(batches, first, strict=True):
        assert np.array_equal(mapper.rows_of({"t": TableIds(ids, np.ones_like(ids))}, train=True)["t"], rows)


def test_hash_and_identity_rows() -> None:
    mapper = IdMapper({"h": spec("h", 12, 8, "auto"), "i": spec("i", 6, 8, "auto", mapping="identity")})
    ids = np.concatenate([[MISSING_ID], np.arange(-500, 500)])
    table = TableIds(ids, np.ones_like(ids))
    rows = mapper.rows_of({"h": table, "i": table}, train=True)
    assert rows["h"][0] == rows["i"][0] == 0
    assert set(rows["h"][1:].tolist()) == set(range(2, 12))
    counts = np.bincount(rows["h"][1:] - 2)
    assert counts.min() > 50, "a hash spreads"
    assert {i: r for i, r in zip(ids.tolist(), rows["i"].tolist(), strict=True) if r > 1} == {0: 2, 1: 3, 2: 4, 3: 5}


def test_hashes_hold_for_ever() -> None:
    """These rows and buckets are in checkpoints: a change of the hash breaks every model."""
    rows = IdMapper({"h": spec("h", 1002, 8, "auto")}).rows_of({"h": _table(-1, 0, 1, 2**40)}, train=True)["h"]
    assert rows.tolist() == [898, 578, 328, 747]
    vocabulary = spec("h", 1600, 8, "row_wise", mapping="vocabulary", buckets=16)
    assert bucket_of(vocabulary, np.array([-1, 0, 1, 2**40])).tolist() == [8, 12, 7, 8]


def test_rows_are_plain_int64_that_torch_takes_without_a_copy() -> None:
    rows = IdMapper(SPECS).rows_of(cut(0, 0, 1), train=True)
    assert all(torch.from_numpy(r).dtype == torch.int64 and r.flags.c_contiguous for r in rows.values())
    assert set(rows) == set(SPECS)
