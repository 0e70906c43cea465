"""Which rows of a saved table become which of a new one: row by row; ids dealt to other buckets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embeddings.buckets import bucket_of
from embeddings.held import Held, LocalChunk
from embeddings.idmap import IdMapper
from embeddings.specs import RESERVED_ROWS, TableSpec
from pipelines.batch import TableIds
from pipelines.schema import MISSING_ID
from tests.embeddings.specs import spec
from trainer import init_id_maps
from trainer.checkpoint.reading import SavedTensors
from trainer.checkpoint.saving import save_tensors
from trainer.init_id_maps import deal_ids
from trainer.init_rows import InBuckets, Kept, RowMoves, kept_rows
from trainer.model_description import TableDescription


def before(mapping: str, rows: int, buckets: int = 0, **more: Any) -> TableDescription:
    return TableDescription(rows=rows, width=8, mapping=mapping, buckets=buckets, optimizer="sgd", **more)


def now(mapping: Any, rows: int, buckets: int = 0) -> TableSpec:
    return spec("t", rows, 8, "row_wise", mapping=mapping, buckets=buckets)


def moved(moves: RowMoves, first: int, last: int, step: int) -> dict[int, int]:
    """{new row: saved row}."""
    found: dict[int, int] = {}
    for piece in moves.pieces(first, last, step):
        old = np.arange(piece.first, piece.first + piece.count)[piece.source]
        target = piece.target
        new = np.arange(target.start, target.stop) if isinstance(target, slice) else target
        assert piece.count <= step
        assert not set(new.tolist()) & found.keys()
        found |= dict(zip(new.tolist(), old.tolist(), strict=True))
    return found


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(1, 6), st.integers(1, 7), st.integers(0, 5), st.data())
def test_rows_keep_their_ids_whatever_part_is_asked_for(
    step: int, buckets: int, of_bucket: int, more: int, data: st.DataObject
) -> None:
    rows, grown = buckets * of_bucket, buckets * (of_bucket + more)
    first = data.draw(st.integers(0, grown))
    last = data.draw(st.integers(first, grown))
    in_buckets = {b * (of_bucket + more) + s: b * of_bucket + s for b in range(buckets) for s in range(of_bucket)}
    expected = {new: old for new, old in in_buckets.items() if first <= new < last}
    assert moved(InBuckets(buckets, of_bucket, of_bucket + more), first, last, step) == expected
    assert moved(Kept(rows), first, last, step) == {row: row for row in range(first, min(last, rows))}


def test_what_can_be_kept_and_what_cannot() -> None:
    assert kept_rows(before("hash", 50), now("hash", 50), ()) == Kept(50)
    assert kept_rows(before("identity", 50), now("identity", 80), ()) == Kept(50)
    assert kept_rows(before("identity", 80), now("identity", 50), ()) == Kept(50)
    assert "hashed to others" in str(kept_rows(before("hash", 50), now("hash", 60), ()))
    assert "mapping was 'hash'" in str(kept_rows(before("hash", 50), now("identity", 50), ()))
    assert "boundaries" in str(kept_rows(before("identity", 5, boundaries=(1.0, 2.0)), now("identity", 5), (1.0, 3.0)))
    assert kept_rows(before("vocabulary", 40, 4), now("vocabulary", 80, 4), ()) == InBuckets(4, 10, 20)
    assert kept_rows(before("vocabulary", 40, 4), now("vocabulary", 40, 5), ()) is None
    assert kept_rows(before("managed", 40, 4), now("managed", 20, 4), ()) is None


@pytest.mark.parametrize(("rows", "buckets", "block"), [(120, 5, 1 << 26), (120, 5, 200), (40, 3, 300), (24, 8, 100)])
def test_ids_are_dealt_to_other_buckets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int, buckets: int, block: int
) -> None:
    """As three ranks would; every id has one row, of its own bucket, in the order in which ids came; what found no room
    is counted. A managed table lets those go that were unseen for longest."""
    monkeypatch.setattr(init_id_maps, "BLOCK_BYTES", block)
    old, new = now("managed", 64, 8), now("managed", rows, buckets)
    mapper = IdMapper({"t": old})
    ids = np.random.default_rng(0).integers(-(2**62), 2**62, (3, 25))
    for hour, of_hour in enumerate(ids, 1):
        of_hour.sort()
        mapper.rows_of({"t": TableIds(of_hour, np.ones(25, np.int64))}, train=True, now=hour * 3_600_000_000)
    state = mapper.state()
    save_tensors(tmp_path / "step_00000001", {f"id_maps/{name}": held for name, held in state.items()}, 1, "{}")
    id_of_row, age = (state[f"t/{key}"].chunks[0].tensor.ravel().tolist() for key in ("ids", "last_seen"))
    known = {i: row for row, i in enumerate(id_of_row) if i != MISSING_ID}
    assert len(known) > 40
    assert len(set(age)) == 4
    row_of: dict[int, int] = {}
    old_of: dict[int, int] = {}
    lost = moved_rows = 0
    with SavedTensors(tmp_path / "step_00000001") as saved:
        for rank in range(3):
            of_rank = new.buckets_of_rank(rank, 3)
            held = _empty(new, of_rank)
            # Rows may lie elsewhere than the map: here this rank has those of the next rank's buckets as well.
            there = range(of_rank.start, new.buckets_of_rank(rank + 1, 3).stop) if rank < 2 else of_rank
            rows_held = torch.zeros(len(there) * new.rows_per_bucket, 8)
            first = there.start * new.rows_per_bucket
            chunks = (LocalChunk((first, 0), rows_held),) if len(there) else ()
            dealt = deal_ids(
                saved, "id_maps/t/", before("managed", 64, 8), new, held, Held((rows, 8), torch.float32, chunks)
            )
            lost += dealt.lost
            moved_rows += dealt.moved
            assert set(dealt.new_N // new.rows_per_bucket) <= set(there)
            assert (np.diff(dealt.old_N) > 0).all()
            old_of |= dict(zip(dealt.new_N.tolist(), dealt.old_N.tolist(), strict=True))
            taken = held["ids"].chunks[0].tensor.numpy() if len(of_rank) else np.empty((0, 1))
            for place, id_ in np.ndenumerate(taken):
                if id_ != MISSING_ID:
                    row_of[int(id_)] = (of_rank.start + place[0]) * new.rows_per_bucket + place[1]
            if len(of_rank):
                used = held["used"].chunks[0].tensor.numpy()
                expected = (taken != MISSING_ID).sum(1) + np.where(np.arange(len(taken)) + of_rank.start == 0, 2, 0)
                np.testing.assert_array_equal(used, expected)
                assert (held["clock"].chunks[0].tensor == 3 * 3_600_000_000).all()
                seen = held["last_seen"].chunks[0].tensor.numpy()[taken != MISSING_ID]
                assert seen.tolist() == [age[known[int(i)]] for i in taken[taken != MISSING_ID]]
    assert len(row_of) + lost == len(known)
    assert moved_rows == len(row_of) + RESERVED_ROWS
    assert {i: old_of[row] for i, row in row_of.items()} == {i: known[i] for i in row_of}
    assert [old_of[row] for row in range(RESERVED_ROWS)] == [0, 1]
    _as_a_slow_reader_would(new, known, age, row_of)


def _as_a_slow_reader_would(new: TableSpec, known: dict[int, int], age: Any, row_of: dict[int, int]) -> None:
    buckets: dict[int, list[int]] = {}
    for id_ in known:
        buckets.setdefault(int(bucket_of(new, np.array([id_]))[0]), []).append(id_)
    expected = {}
    for bucket, ids in buckets.items():
        begin = RESERVED_ROWS if bucket == 0 else 0
        stay = sorted(ids, key=lambda i: -age[known[i]])[: new.rows_per_bucket - begin]
        for slot, id_ in enumerate(sorted(stay, key=lambda i: known[i]), begin):
            expected[id_] = bucket * new.rows_per_bucket + slot
    assert row_of == expected


def _held(tensor: torch.Tensor, first: int, buckets: int) -> Held:
    chunk = LocalChunk((first, *(0 for _ in tensor.shape[1:])), tensor)
    return Held((buckets, *tensor.shape[1:]), tensor.dtype, (chunk,) if len(tensor) else (), is_copy=True)


def _empty(new: TableSpec, of_rank: range) -> dict[str, Held]:
    """What an IdMapper holds that knows no id."""
    count, first = len(of_rank), of_rank.start
    used = torch.zeros(count, dtype=torch.int64)
    if 0 in of_rank:
        used[0] = RESERVED_ROWS
    return {
        "ids": _held(torch.full((count, new.rows_per_bucket), MISSING_ID), first, new.buckets),
        "counts": _held(torch.zeros((count, new.rows_per_bucket), dtype=torch.int64), first, new.buckets),
        "last_seen": _held(torch.zeros((count, new.rows_per_bucket), dtype=torch.int64), first, new.buckets),
        "used": _held(used, first, new.buckets),
        "clock": _held(torch.zeros(count, dtype=torch.int64), first, new.buckets),
    }
