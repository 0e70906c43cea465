"""A managed table follows its policy to the letter, is told as of any step at hand, and forgets nothing on the way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embeddings.errors import IdMapError
from embeddings.idmap import IdMapper
from embeddings.managed import ManagedMap
from embeddings.specs import TableSpec
from pipelines.batch import TableIds
from pipelines.hashing import mix
from pipelines.schema import MISSING_ID
from tests.embeddings.managed_reference import Reference
from tests.embeddings.specs import spec

HOUR, DAY = 3_600_000_000, 86_400_000_000
EVERY_ID = np.sort(np.append(np.arange(-10, 10), mix(np.arange(110), 1).view(np.int64)))  # as strings' hashes are

BATCH = st.tuples(
    st.dictionaries(st.sampled_from(EVERY_ID.tolist()), st.integers(1, 3), max_size=25), st.integers(-HOUR, 2 * DAY)
)  # ({id: occurrences}, how much later than the batch before)
POLICY = st.tuples(st.sampled_from(["lru", "lfu", "ttl"]), st.integers(1, 3), st.sampled_from([3, 4]))


def managed(evict: str, admit_after: int = 1, rows: int = 24, buckets: int = 3, **changes: Any) -> TableSpec:
    table = spec("t", rows, 8, "row_wise", mapping="managed", buckets=buckets)
    return replace(table, evict=evict, admit_after=admit_after, **({"ttl_days": 3.0} | changes))


def table(batch: dict[int, int]) -> dict[str, TableIds]:
    ids = np.array(sorted(batch), np.int64)
    return {"t": TableIds(ids, np.array([batch[i] for i in sorted(batch)], np.int64))}


def rows_now(mapper: IdMapper, upto_step: int | None = None) -> list[int]:
    asked = {"t": TableIds(EVERY_ID, np.ones_like(EVERY_ID))}
    return mapper.rows_of(asked, train=False, upto_step=upto_step)["t"].tolist()


def states_equal(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(
        np.array_equal(x.tensor, y.tensor) for k in a for x, y in zip(a[k].chunks, b[k].chunks, strict=True)
    )


@given(POLICY, st.lists(BATCH, min_size=1, max_size=14))
@settings(max_examples=150, deadline=None)
def test_rows_follow_the_rules_and_the_past_can_be_told(policy: Any, batches: list[Any]) -> None:
    """Against plain Python, after every batch: the map, evictions, and no row shared. Then every step, from the last
    one's map: rows and state as they were, also loaded into a new mapper that goes on from there."""
    evict, admit_after, buckets = policy
    table_spec = managed(evict, admit_after, buckets=buckets)
    reference, mapper, now = Reference(table_spec), IdMapper({"t": table_spec}), 50 * DAY
    mapper.mark(0)
    rows, states = [rows_now(mapper)], [mapper.state()]
    for step, (batch, later) in enumerate(batches, 1):
        now += later
        had = len(reference.evicted)
        found = mapper.rows_of(table(batch), train=True, now=now)["t"]
        reference.learn(batch, now)
        mapper.mark(step)
        expected = [reference.row(i) for i in EVERY_ID.tolist()]
        assert rows_now(mapper) == expected
        assert found.tolist() == [reference.row(i) for i in sorted(batch)]
        known = [row for row in expected if row > 1]
        assert len(set(known)) == len(known), "no two ids share a row"
        evicted = sorted(row for _, row in reference.evicted[had:])
        assert mapper._maps["t"].evicted(step).tolist() == evicted
        rows.append(expected)
        states.append(mapper.state())
    for step, (then, state) in enumerate(zip(rows, states, strict=True)):
        assert rows_now(mapper, upto_step=step) == then
        assert states_equal(mapper.state(step), state)
    half = len(batches) // 2
    loaded = IdMapper({"t": table_spec})
    loaded.load_state(mapper.state(half))
    now = 50 * DAY + sum(later for _, later in batches[:half])
    for batch, later in batches[half:]:
        now += later
        loaded.rows_of(table(batch), train=True, now=now)
    assert states_equal(loaded.state(), mapper.state())


@pytest.mark.parametrize(
    ("evict", "rows"),
    [("lru", {1: 1, 2: 3, 3: 2}), ("lfu", {1: 2, 2: 1, 3: 3}), ("ttl", {1: 2, 2: 3, 3: 1})],
)
def test_each_policy_by_hand(evict: str, rows: dict[int, int]) -> None:
    """Two rows for ids: 1 is sighted more often, 2 later; then 3 comes, two days after 1 was last seen."""
    mapper = IdMapper({"t": managed(evict, rows=4, buckets=1)})
    for day, batch in [(10, {1: 9, 2: 1}), (11, {2: 5}), (12, {3: 1})]:
        mapper.rows_of(table(batch), train=True, now=day * DAY)
    assert {i: row for i, row in zip(EVERY_ID.tolist(), rows_now(mapper), strict=True) if i in rows} == rows
    if evict == "ttl":  # three days: now 1 has expired
        assert mapper.rows_of(table({3: 1}), train=True, now=13 * DAY)["t"].tolist() == [2]


def test_an_id_of_the_batch_is_never_evicted_for_another() -> None:
    mapper = IdMapper({"t": managed("lfu", rows=6, buckets=1)})
    assert mapper.rows_of(table({1: 1, 2: 1, 3: 1, 4: 1}), train=True)["t"].tolist() == [2, 3, 4, 5]
    assert mapper.rows_of(table({1: 1, 2: 1, 3: 1, 4: 1, 5: 9}), train=True)["t"].tolist() == [2, 3, 4, 5, 1]
    assert mapper.rows_of(table({2: 1, 3: 1, 4: 1, 5: 1}), train=True)["t"].tolist() == [3, 4, 5, 2]


def test_sightings_of_lookups_fillers_and_frozen_tables_do_not_count() -> None:
    mapper = IdMapper({"t": managed("lru", admit_after=2)})
    for _ in range(3):
        assert mapper.rows_of(table({5: 1}), train=False)["t"].tolist() == [1]
        assert mapper.rows_of(table({5: 0, MISSING_ID: 3}), train=True)["t"].tolist() == [0, 1]
    assert mapper.rows_of(table({5: 1}), train=True)["t"].tolist() == [1]
    assert mapper.rows_of(table({5: 1}), train=True)["t"][0] > 1
    frozen = IdMapper({"t": managed("lru", frozen=True)})
    assert frozen.rows_of(table({5: 7}), train=True)["t"].tolist() == [1]


def test_resets_are_told_once_and_steps_trained_are_forgotten() -> None:
    mapper = IdMapper({"t": managed("lru", rows=4, buckets=1)})
    mapper.mark(7)
    for step, identifier in enumerate([1, 2, 3, 4], 8):
        mapper.rows_of(table({identifier: 1}), train=True)
        mapper.mark(step)
    assert mapper.take_resets(9) == {}
    assert {name: rows.tolist() for name, rows in mapper.take_resets(10).items()} == {"t": [2]}
    then = dict(zip(EVERY_ID.tolist(), rows_now(mapper, upto_step=10), strict=True))
    assert [then[i] for i in (1, 2, 3, 4)] == [1, 3, 2, 1]
    with pytest.raises(IdMapError, match="steps at hand"):
        mapper.state(upto_step=9)
    assert mapper.take_resets(99) == {}, "no such batch: the data have ended"
    assert not mapper._maps["t"]._journal.of(9)


def test_stats_count_what_comes_and_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embeddings.map_stats.EVERY", 1)
    mapper = IdMapper({"t": managed("lru", rows=4, buckets=1), "h": spec("h", 12, 8, "auto")})
    ids = np.arange(100)
    both = {**table({1: 1, 2: 1}), "h": TableIds(ids, np.ones_like(ids))}
    mapper.rows_of(both, train=True)
    mapper.rows_of(table({3: 1, 4: 1, 5: 1}), train=True)
    stats = mapper.stats()
    assert (stats["t"].ids, stats["t"].unknown_ids, stats["t"].admissions, stats["t"].evictions) == (5, 1, 4, 2)
    assert stats["t"].fill == 1.0
    assert stats["t"].unknown_rate == 0.2
    assert stats["h"].collision_rate == 1.0
    again = mapper.stats()["t"]
    assert (again.ids, again.admissions, again.evictions, again.fill) == (0, 0, 0, 1.0)
    assert (stats["t"] + again).rows == 8


def test_the_collision_rate_is_that_of_all_ids_seen_on_a_sample_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embeddings.map_stats.SAMPLE", 2000)
    monkeypatch.setattr("embeddings.map_stats.EVERY", 1)
    mapper = IdMapper({"h": spec("h", 100_002, 8, "auto")})
    rng = np.random.default_rng(0)
    every = rng.integers(0, 1 << 60, 60_000)
    for part in np.split(every, 20):
        ids = np.unique(np.append(part, every[:500]))
        mapper.rows_of({"h": TableIds(ids, np.ones_like(ids))}, train=True)
    distinct = np.unique(every)
    rows = mapper.rows_of({"h": TableIds(distinct, np.ones_like(distinct))}, train=False)["h"]
    _, inverse, sharing = np.unique(rows, return_inverse=True, return_counts=True)
    truth = float((sharing[inverse] > 1).mean())
    assert mapper.stats()["h"].collision_rate == pytest.approx(truth, abs=0.04)
    assert 0.3 < truth < 0.6


def test_a_large_table_under_drift_stays_consistent() -> None:
    """Many evictions in large buckets: the index, the records and the heaps agree with each other."""
    for evict in ("lru", "lfu", "ttl"):
        table_spec = managed(evict, admit_after=2, rows=4096, buckets=4, ttl_days=1.0)
        held = ManagedMap(table_spec, range(4))
        rng = np.random.default_rng(1)
        for step in range(60):
            ids = np.unique((rng.zipf(1.2, 3000) % 100_000) + 700 * step)
            held.learn([ids], [np.ones_like(ids)], step * DAY // 8)
        state = held.state()
        known = state["ids"][state["ids"] != MISSING_ID]
        rows = held.rows_of(known)
        assert np.array_equal(state["ids"].ravel()[rows], known)
        assert len(np.unique(rows)) == len(rows)
        assert held._index.count == len(known) == int((held._index.slots >= 0).sum())
        assert held.evictions > 1000
