"""Every compiled loop equals its slow twin, whatever the ids, the strings and the lists look like."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.compiled import address
from pipelines.hashing import derive_seed, hash_strings
from pipelines.kernels import count_outside, deal_by_cost, gather
from pipelines.schema import MISSING_ID
from pipelines.unique_kernel import SCRATCH, count_values, unique_values
from tests.pipelines.reference import fnv1a

LARGEST = 2**63 - 1
IDS = st.one_of(
    st.integers(MISSING_ID, LARGEST),
    st.integers(-3, 60),  # a table of places
    st.integers(0, 3000),  # a bitmap
    st.integers(0, 400).map(lambda n: n << 40),  # few digits differ
    st.integers(0, 400).map(lambda n: MISSING_ID + n),  # close together, at both ends
    st.integers(0, 400).map(lambda n: LARGEST - n),
)


def unique(columns: list[np.ndarray], starts: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, ...]:
    """(ids, counts, inverse) of list columns of one table, of these rows."""
    columns = [np.ascontiguousarray(column) for column in columns]
    count = len(columns)
    starts_GR, lengths_GR = np.stack([starts * 0, starts]), np.stack([starts * 0, lengths])
    none, group, first = np.zeros(count, np.int64), np.ones(count, np.int64), np.array([0, count])
    rows, begins, used = np.array([0, len(starts)]), np.empty((1, count + 1), np.int64), np.empty((1, 1), np.int64)
    count_values(none, none, group, starts_GR, lengths_GR, rows, begins)
    total = int(begins[0, -1])
    ids, counts, wide, narrow = SCRATCH.room(total, total)
    inverse = np.empty(total, np.int32)
    places = np.array([address(column) for column in columns])
    unique_values(
        places, none, none, group, first, starts_GR, lengths_GR, rows, begins, wide, narrow, inverse, ids, counts, used
    )
    return ids[: used[0, 0]].copy(), counts[: used[0, 0]].copy(), inverse


def assert_unique(columns: list[np.ndarray], starts: np.ndarray, lengths: np.ndarray) -> None:
    rows = list(zip(starts, lengths, strict=True))
    values = np.concatenate([column[s : s + n] for column in columns for s, n in rows] or [np.zeros(0, np.int64)])
    ids, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    found, found_counts, found_inverse = unique(columns, starts, lengths)
    np.testing.assert_array_equal(found, ids)
    np.testing.assert_array_equal(found_counts, counts)
    np.testing.assert_array_equal(found_inverse, inverse)


@settings(max_examples=200, deadline=None)
@given(st.data(), st.integers(0, 40))
def test_unique_ids_are_numpys(data: st.DataObject, size: int) -> None:
    kind = data.draw(st.sampled_from(["one", "mixed"]))
    ids = data.draw(st.sampled_from(IDS.original_strategies)) if kind == "one" else IDS  # type: ignore[attr-defined]
    column = st.lists(ids, min_size=size, max_size=size).map(lambda found: np.array(found, np.int64))
    columns = data.draw(st.lists(column, min_size=1, max_size=3))
    bounds = np.array(sorted(data.draw(st.lists(st.integers(0, size), min_size=1, max_size=6))))
    order = np.array(data.draw(st.permutations(range(len(bounds) - 1))), np.int64)
    assert_unique(columns, bounds[:-1][order], np.diff(bounds)[order])


@pytest.mark.parametrize("count", [1, 700, 30_000])
def test_unique_ids_of_many_shapes(count: int) -> None:
    """Tables of every density, crowded and spread hashes, whatever a larger table has left in the working memory."""
    rng = np.random.default_rng(count)
    zipf = rng.zipf(1.2, count).astype(np.int64)
    for ids in (
        rng.integers(MISSING_ID, LARGEST, count),
        zipf,
        (zipf.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)).view(np.int64),
        np.where(rng.random(count) < 0.5, rng.integers(0, 99, count), rng.integers(2**62, 2**62 + 10**6, count)),
        np.arange(count) << 20,
        np.full(count, MISSING_ID),
        np.append(rng.integers(0, 4 * count, count - 1), LARGEST),
    ):
        assert_unique([ids], np.array([0]), np.array([count]))


@pytest.mark.parametrize("dtype", [np.int64, np.float32, np.int32, np.float64])
@pytest.mark.parametrize("size", [0, 1, 2, 3])
def test_gather_takes_slices(dtype: type, size: int) -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 99, (50, size) if size else 50).astype(dtype)
    values.setflags(write=False)
    starts, lengths = np.array([40, 0, 7, 7, 50]), np.array([10, 0, 3, 5, 0])
    found = gather(values, starts, lengths, 18)
    wanted = np.concatenate([values[s : s + n] for s, n in zip(starts, lengths, strict=True)])
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, wanted)
    assert len(gather(values, starts[:0], lengths[:0], 0)) == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.none(), st.text(max_size=40)), max_size=30), st.integers(0, 3))
def test_strings_hash_alike_in_every_arrow_type(texts: list[str | None], skip: int) -> None:
    wanted = [MISSING_ID if text is None else fnv1a(text) for text in texts][skip:]
    for kind in (pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int16(), pa.string())):
        assert hash_strings(pa.array(texts, kind)[skip:]).tolist() == wanted


def test_a_name_in_a_seed_is_its_hash() -> None:
    for name in ("", "rows", "dt=2026-11-20", "naïve"):
        assert derive_seed(name) == derive_seed(fnv1a(name))


def test_values_outside_their_range_are_counted() -> None:
    columns = [np.array([MISSING_ID, 3, -1, 9]), np.array([], np.int64), np.array([5, 6])]
    places, counts = np.array([address(c) for c in columns]), np.array([len(c) for c in columns])
    assert count_outside(places, counts, np.array([0, 0, 5]), np.array([8, 0, 5])).tolist() == [3, 0, 1]


def test_dealing_is_longest_first_to_the_least_loaded() -> None:
    rng = np.random.default_rng(1)
    for ranks, rows in ((1, 5), (3, 2), (8, 512), (64, 512)):
        cost = np.round(rng.lognormal(3, 1, rows))
        load, held = [0.0] * ranks, [0] * ranks
        dealt = np.empty(rows, np.int64)
        for row in sorted(range(rows), key=lambda r: (-cost[r], r)):
            dealt[row] = rank = min(range(ranks), key=lambda n: (load[n], held[n], n))
            load[rank] += cost[row]
            held[rank] += 1
        assert deal_by_cost(cost, ranks).tolist() == dealt.tolist()
    assert np.bincount(deal_by_cost(np.zeros(10), 4)).tolist() == [3, 3, 2, 2], "rows that cost nothing are spread too"
