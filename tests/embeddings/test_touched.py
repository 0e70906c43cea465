"""Marked rows are those that training looked up, on the rank that holds them; whatever changes was marked, and watched
before it changed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from embeddings.touched import LAST_GENERATION, RowMap, ShardRows, TouchedRows
from tests.embeddings.toy import SPECS, rows_of_step

pytestmark = pytest.mark.timeout(400)  # the ranks start inside the first test


def _expected(shard: tuple[str, int, torch.Tensor], world_size: int) -> torch.Tensor:
    """Steps 0 and 1 are of generation 1, step 2 of generation 2."""
    name, first, found = shard
    generations = torch.zeros(SPECS[name].rows, dtype=torch.uint8)
    for step in range(3):
        for rank in range(world_size):
            generations[rows_of_step(SPECS, step, rank)[name]] = 1 if step < 2 else 2
    return generations[first : first + len(found)]


def test_rows_looked_up_are_marked_where_they_lie(on_ranks: dict[int, list[dict[str, Any]]]) -> None:
    for world_size, ranks in on_ranks.items():
        marked = 0
        for rank in ranks:
            for shard in rank["touched"]["generations"]:
                assert torch.equal(shard[2], _expected(shard, world_size)), (world_size, shard[:2])
                marked += int((shard[2] > 0).sum())
        assert marked > 0


def test_rows_that_are_not_marked_did_not_change(on_ranks: dict[int, list[dict[str, Any]]]) -> None:
    """Nor did any row that is not of the last generation in its steps: what a differential checkpoint relies on."""
    for ranks in on_ranks.values():
        for rank in ranks:
            found = rank["touched"]
            generation_of = {(name, first): g for name, first, g in found["generations"]}
            for name in SPECS:
                shards = zip(found["start"][name], found["middle"][name], found["end"][name], strict=True)
                for (first, _, start), (_, _, middle), (_, _, end) in shards:
                    generation_R = generation_of[name, first]
                    assert torch.equal(start[generation_R == 0], end[generation_R == 0])
                    assert torch.equal(middle[generation_R < 2], end[generation_R < 2])
                    assert not torch.equal(middle[generation_R == 2], end[generation_R == 2]) or not len(end)


def test_the_watcher_is_told_before_rows_change_and_evaluation_is_no_change(
    on_ranks: dict[int, list[dict[str, Any]]],
) -> None:
    for ranks in on_ranks.values():
        for rank in ranks:
            assert rank["touched"]["watched_too_late"] == 0
            assert rank["touched"]["watched"] > 0
            assert rank["touched"]["marked_by_evaluation"] is False


def _alone() -> TouchedRows:
    generation = torch.zeros(10, dtype=torch.uint8)
    shards = (ShardRows("a", 4, generation[:6], 0), ShardRows("b", 0, generation[6:], 6))
    return TouchedRows([RowMap(generation, torch.tensor([0, 6]), shards)])


def test_rows_reset_by_eviction_are_marked() -> None:
    touched = _alone()
    seen: list[list[int]] = []
    touched.watcher = lambda _, positions: seen.append(positions.tolist())
    touched.changing("a", torch.tensor([5, 9]))
    touched.changing("b", torch.tensor([3]))
    assert [s.generation_R.tolist() for s in touched.shards()] == [[0, 1, 0, 0, 0, 1], [0, 0, 0, 1]]
    assert seen == [[1, 5], [9]]
    assert touched.never_touched() == {"a": (4, 6), "b": (3, 4)}


def test_generations_outlive_their_byte() -> None:
    touched = _alone()
    touched.changing("b", torch.tensor([0]))
    for _ in range(3 * LAST_GENERATION):
        before = touched.generation
        touched.changing("a", torch.tensor([6]))
        ended = touched.end_generation()
        (a, b) = touched.shards()
        assert (a.generation_R == ended).tolist() == [False, False, True, False, False, False]
        assert b.generation_R.tolist()[1:] == [0, 0, 0]
        assert 0 < b.generation_R[0] <= ended < touched.generation <= before + 1
