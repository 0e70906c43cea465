"""The packed stream of a small batch, written out by hand, and the merging of histories."""

from __future__ import annotations

import copy

import torch

from model.cone import needed_tokens
from model.inputs import HistoryInput, RankerInput
from model.mask import sight, visible
from model.rankers import build_ranker
from model.stream import build_stream
from model.timeline import merge
from tests.model.builders import SECOND, make_config, make_input, make_spec


def history(lengths: list[int], times: list[int]) -> HistoryInput:
    time_E = torch.tensor(times) * SECOND
    return HistoryInput(torch.tensor(lengths), {}, {}, time_E, time_E.clone(), time_E.clone())


def request(candidates: list[int], times: list[int]) -> RankerInput:
    time_R = torch.tensor(times) * SECOND
    return RankerInput({}, {}, {}, torch.tensor(candidates), time_R, time_R.clone())


def test_two_rows_of_two_histories_by_hand() -> None:
    """Row 0: F F <sep> s a s s a <sep> V V V: events of history 0 (with actions) at 1 and 5, of history 1 at 2.
    Row 1: F F <sep> s <sep> V: one event of history 1. It is the shorter one, so it comes first."""
    histories, batch = [history([2, 0], [1, 5]), history([1, 1], [2, 7])], request([3, 1], [9, 9])
    timeline = merge(histories, [True, False], batch)
    assert timeline.rank_E.tolist() == [0, 2, 1, 0]
    assert (timeline.gap_E // SECOND).tolist() == [0, 3, 1, 0]
    assert (timeline.newest_gap_R // SECOND).tolist() == [4, 2]
    stream = build_stream(make_spec(), 2, timeline, batch.candidate_lengths_R, batch.clock_R, num_supervised=4)
    assert stream.row_N.tolist() == [*[0] * 6, *[1] * 12]
    assert stream.order_N.tolist() == [*range(6), *range(12)]
    assert stream.index_N.tolist() == [*range(6), *range(10), 9, 9]
    assert stream.position_N.tolist() == [0, 0, 0, 1, 2, 2, 0, 0, 0, 1, 1, 2, 3, 3, 4, 4, 4, 4]
    assert stream.last_N.tolist() == [0, 1, 2, 3, 4, 4, 0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 8, 8]
    assert stream.supervised_S.tolist() == [15, 16, 17, 5]


def test_sliding_layers_by_hand() -> None:
    """Row: F F <sep> s s s <sep> V V, window 3."""
    batch = request([2], [9])
    timeline = merge([history([3], [1, 2, 3])], [False], batch)
    stream = build_stream(make_spec(), 2, timeline, batch.candidate_lengths_R, batch.clock_R, num_supervised=2)
    seen_NN = visible(sight(stream, 3), sight(stream, 3))
    assert [row.nonzero().flatten().tolist() for row in seen_NN] == [
        [0], [0, 1], [2], [2, 3], [2, 3, 4], [3, 4, 5], [4, 5, 6], [5, 6, 7], [5, 6, 8]
    ]  # fmt: skip
    tokens = [None if index is None else index.tolist() for index in needed_tokens(stream, [None, 4, 3])]
    assert tokens == [None, [2, 3, 4, 5, 6, 7, 8], [5, 6, 7, 8], [7, 8]]
    wide = needed_tokens(stream, [64, 3])[0]
    assert wide is not None
    assert wide.tolist() == [2, 3, 4, 5, 6, 7, 8]  # never the fields


def test_histories_merge_by_time_then_by_clock() -> None:
    first, second = history([3], [1, 1, 2]), history([2], [1, 1])
    first.clock_E, second.clock_E = torch.tensor([1, 3, 4]), torch.tensor([0, 2])
    assert merge([first, second], [False, False], request([1], [9])).rank_E.tolist() == [1, 3, 4, 0, 2]


def test_plain_causal_candidates_stand_at_their_true_places() -> None:
    batch = request([2], [9])
    timeline = merge([history([1], [1])], [False], batch)
    stream = build_stream(
        make_spec(), 0, timeline, batch.candidate_lengths_R, batch.clock_R, num_supervised=2, isolated_candidates=False
    )
    assert stream.index_N.tolist() == stream.last_N.tolist() == [0, 1, 2, 3, 4]
    assert stream.position_N.tolist() == [0, 1, 2, 2, 2]


def test_where_ties_are_ordered_an_earlier_action_of_the_same_time_is_known() -> None:
    spec = make_spec("history")
    torch.manual_seed(5)
    ranker, batch = build_ranker(spec, make_config(full_layers=4)).double(), make_input(spec, {"seen": [4]})
    seen = batch.histories["seen"]
    seen.time_E = torch.zeros(4, dtype=torch.int64)
    for clock, expected in ((torch.arange(4), [2, 3]), (torch.zeros(4, dtype=torch.int64), [])):
        seen.clock_E, seen.action_clock_E = clock, clock.clone()
        after = copy.deepcopy(batch)
        after.histories["seen"].action["click"][1] += 1
        difference = (ranker(batch) - ranker(after)).abs().amax(1)
        assert (difference > 1e-12).nonzero().flatten().tolist() == expected
