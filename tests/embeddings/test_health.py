"""Counts of a batch against counting one by one, cut over any number of ranks; and the sample of rows."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch

from embeddings.exchange import Exchange
from embeddings.health import BatchCounter, BatchCounts, TableFigures, figures, flat
from embeddings.held import Held, LocalChunk, whole
from embeddings.idmap import IdMapper
from embeddings.row_sample import RowSample, sample_of
from pipelines.batch import Int64, TableIds
from pipelines.schema import MISSING_ID
from tests.embeddings.specs import spec

SPECS = {
    s.name: s
    for s in [
        spec("few", 12, 8, "row_wise"),  # 10 rows by hash: collisions are sure
        spec("item", 40, 8, "row_wise", mapping="vocabulary", buckets=4),  # too small: unknown ids are sure
        spec("empty", 30, 8, "row_wise"),
        spec("hour", 10, 8, "column_wise", mapping="identity"),
    ]
}


class Wired:
    """Stands for the exchange of `world_size` ranks that are asked one after the other, twice: what each sends in the
    first round reaches the others in the second."""

    def __init__(self, world_size: int) -> None:
        self.world_size, self.rank = world_size, 0
        self._sent: dict[int, list[list[Int64]]] = {}

    def lists(self, parts: list[list[Int64]]) -> list[list[Int64]]:
        self._sent[self.rank] = parts
        return [self._sent[source][self.rank] for source in range(self.world_size) if source in self._sent]


def occurrences(seed: int) -> dict[str, list[int]]:
    rng = np.random.default_rng(seed)
    ids = {
        "few": rng.geometric(0.05, 300),
        "item": rng.geometric(0.03, 400) * np.int64(10**12),
        "empty": np.full(5, MISSING_ID),  # nulls only
        "hour": rng.integers(-1, 12, 50),  # some are outside the table
    }
    return {name: [*values.tolist(), MISSING_ID] for name, values in ids.items()}


def cut(ids: list[int], world_size: int) -> list[TableIds]:
    parts = []
    for rank in range(world_size):
        unique, counts = np.unique(np.array(ids[rank::world_size], np.int64), return_counts=True)
        parts.append(TableIds(unique, counts))
    return parts


def by_hand(ids: dict[str, list[int]], mapper: IdMapper) -> dict[str, dict[str, int]]:
    found = {}
    for name, values in ids.items():
        count = Counter(value for value in values if value != MISSING_ID)
        table = TableIds(np.array(sorted(count), np.int64), np.ones(len(count), np.int64))
        others = {other: TableIds(np.zeros(0, np.int64), np.zeros(0, np.int64)) for other in SPECS}
        rows = mapper.rows_of({**others, name: table}, train=False)[name].tolist()
        row_of = dict(zip(sorted(count), rows, strict=True))
        sharing = Counter(row_of.values())
        found[name] = {
            "occurrences": sum(count.values()),
            "unknown": sum(n for value, n in count.items() if row_of[value] == 1),
            "ids": len(count),
            "colliding": sum(sharing[row] > 1 for row in row_of.values()) if SPECS[name].mapping == "hash" else 0,
            "hottest": max(count.values(), default=0),
        }
    return found


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_counts_of_a_batch_are_those_of_counting_one_by_one_however_it_is_cut(world_size: int) -> None:
    ids = occurrences(seed=4)
    mapper = IdMapper(SPECS)
    whole_batch = {name: cut(values, 1)[0] for name, values in ids.items()}
    mapper.rows_of(whole_batch, train=True)
    wired = Wired(world_size)
    counter = BatchCounter(SPECS, cast(Exchange, wired))
    counted: list[BatchCounts] = []
    for _ in range(2):
        counted = []
        for rank in range(world_size):
            wired.rank = rank
            tables = {name: cut(values, world_size)[rank] for name, values in ids.items()}
            if rank == world_size - 1:  # a filler's ids are in the batch, and count nothing
                other = {999_999: 0} | dict(zip(tables["few"].ids.tolist(), tables["few"].counts.tolist(), strict=True))
                filler = sorted(other.items())
                tables["few"] = TableIds(*(np.array(part, np.int64) for part in zip(*filler, strict=True)))
            counted.append(counter.count(flat(SPECS, tables, mapper.rows_of(tables, train=False))))
    expected = by_hand(ids, mapper)
    for t, name in enumerate(SPECS):
        for key, value in expected[name].items():
            parts = [int(getattr(each, key)[t]) for each in counted]
            assert (max(parts) if key == "hottest" else sum(parts)) == value, (name, key, parts)
    assert expected["few"]["colliding"] > 10
    assert expected["item"]["unknown"] > 10
    assert expected["hour"]["unknown"] > 0


def test_figures_that_a_mapping_does_not_have_are_none() -> None:
    counted: dict[str, Any] = {
        key: np.full(4, 10.0) for key in ("occurrences", "unknown", "ids", "colliding", "hottest")
    }
    counted |= {key: np.full(4, 10.0) for key in ("norms", "norm_max", "used", "admissions", "evictions")}
    counted |= {"sampled": np.array([4, 4, 4, 0]), "untouched": np.array([1, 1, 1, 0])}
    counted["occurrences"] = np.array([20, 20, 0, 20])
    found = figures(SPECS, counted)
    assert found["few"] == TableFigures("hash", False, 0.5, 0.5, 0.5, 1.0, None, None, None, 0.5, 10.0, 0.25)
    assert (found["item"].collision_rate, found["item"].admissions, found["item"].fill) == (None, 10, 0.25)
    assert (found["empty"].unique_share, found["empty"].row_norm, found["empty"].row_norm_max) == (None, None, None)
    assert found["hour"].never_touched_share is None


def test_the_sample_of_rows_is_spread_over_the_table_and_over_places_in_a_bucket() -> None:
    table = spec("item", 4096 * 1000, 8, "row_wise", mapping="vocabulary", buckets=1000)
    rows = sample_of(table, 1000)
    assert len(rows) == 1000
    assert np.array_equal(rows // 4096, np.arange(1000)), "one of each stretch"
    assert abs((rows % 4096).mean() - 2048) < 5 * 4096 / 12**0.5 / 1000**0.5, "and anywhere in it"
    assert np.array_equal(sample_of(replace(table, rows=999), 1000), np.arange(999))


def test_rows_without_state_are_those_that_no_gradient_has_reached_under_any_sharding() -> None:
    specs = {name: spec(name, 50, 8, "auto") for name in ("whole", "rows", "columns", "both", "frozen", "sgd", "adam")}
    specs["frozen"] = replace(specs["frozen"], frozen=True)
    touched = torch.zeros(50, 8)
    touched[[3, 17, 18, 49]] = 0.5
    touched[[3, 49], 0] = 0.0  # a gradient may be zero in a column
    by_row = touched.max(dim=1, keepdim=True).values
    held = {
        "whole/momentum1": whole(touched),
        "rows/momentum1": Held((50, 1), torch.float32, (LocalChunk((10, 0), by_row[10:30]),)),
        "columns/momentum1": Held((50, 2), torch.float32, tuple(LocalChunk((0, c), by_row) for c in (0, 1))),
        "both/momentum1": Held((50, 2), torch.float32, (LocalChunk((0, 1), by_row),)),  # the other shard is elsewhere
        "frozen/momentum1": whole(touched),
        "sgd/weight": whole(touched),
        "adam/exp_avg": whole(torch.zeros(50, 8)),
        "adam/exp_avg_sq": whole(touched),
    }
    sample = RowSample(held, specs)
    assert [part.tolist() for part in sample.counts()] == [[50, 20, 50, 0, 0, 0, 50], [46, 18, 46, 0, 0, 0, 46]]
    touched[5] = 1.0  # the very memory is looked at
    assert sample.counts()[1][0] == 45
