"""What a user relies on: a row stands alone, the future is out of sight, and what does not fit is said at once."""

from __future__ import annotations

import copy

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from model.config import DIN, Model, Tokens
from model.inputs import RankerInput
from model.rankers import build_ranker, check_ranker
from model.tokens import group_fields
from tests.model.builders import SECOND, make_config, make_input, make_spec, select
from tests.model.comparing import assert_repeats_itself

LENGTHS = {"seen": [5, 0, 8, 1, 3], "bought": [2, 0, 0, 3, 1]}
CANDIDATES = [3, 1, 2, 4, 1]
TOWERS = [
    ("candidates", {}),
    ("candidates", {"action_tokens": "separate"}),
    ("history", {}),
    ("history", {"full_layers": 0}),
]


def build(supervision: str = "candidates", **changes: object) -> tuple[nn.Module, RankerInput]:
    torch.manual_seed(3)
    spec = make_spec(supervision, histories=2)
    return build_ranker(spec, make_config(**changes)).double(), make_input(spec, LENGTHS, CANDIDATES, seed=4)


def supervised_counts(batch: RankerInput, supervision: str) -> list[int]:
    lengths = batch.candidate_lengths_R if supervision == "candidates" else batch.histories["seen"].lengths_R
    return [int(length) for length in lengths]


def changed(before: torch.Tensor, after: torch.Tensor) -> list[int]:
    return ((before - after).abs().amax(1) > 1e-12).nonzero().flatten().tolist()


@pytest.mark.parametrize(("supervision", "changes"), TOWERS)
def test_a_rows_logits_do_not_depend_on_its_batch(supervision: str, changes: dict) -> None:
    ranker, batch = build(supervision, **changes)
    parts = ranker(batch).split(supervised_counts(batch, supervision))
    for rows in ([0], [1], [4, 2], [3, 3, 0, 1], list(range(5)) * 8):
        torch.testing.assert_close(
            ranker(select(batch, rows)), torch.cat([parts[r] for r in rows]), rtol=1e-12, atol=1e-12
        )


@pytest.mark.parametrize("changes", [{}, {"full_layers": 0}, {"kind": "transformer"}])
def test_candidates_of_a_row_equal_rows_of_one_candidate_in_any_order(changes: dict) -> None:
    ranker, batch = build(**changes)
    parts = ranker(batch).split(CANDIDATES)
    shuffled = ranker(select(batch, [0, 3], [[2, 0, 1], [3, 1, 2, 0]]))
    torch.testing.assert_close(shuffled, torch.cat([parts[0][[2, 0, 1]], parts[3][[3, 1, 2, 0]]]), rtol=0, atol=1e-12)
    alone = ranker(select(batch, [3] * 4, [[c] for c in range(4)]))
    torch.testing.assert_close(alone, parts[3], rtol=0, atol=1e-12)


def test_with_the_plain_causal_switch_a_candidate_sees_those_before_it() -> None:
    ranker, batch = build(candidates_see="all")
    after = copy.deepcopy(batch)
    after.candidates["item"][1] += 1  # the second of the first row's three
    assert changed(ranker(batch), ranker(after)) == [1, 2]


@pytest.mark.parametrize("changes", [{}, {"full_layers": 0}, {"full_layers": 4}, {"kind": "transformer"}])
def test_history_supervision_sees_neither_later_events_nor_unknown_actions(changes: dict) -> None:
    ranker, batch = build("history", **changes)
    before, seen = ranker(batch), batch.histories["seen"]
    rows = torch.repeat_interleave(torch.arange(5), seen.lengths_R).tolist()
    for e in range(len(seen.time_E)):
        after = copy.deepcopy(batch)
        after.histories["seen"].event["item"][e] += 1
        assert set(changed(before, ranker(after))) <= {s for s in range(e, len(rows)) if rows[s] == rows[e]}
        after = copy.deepcopy(batch)
        after.histories["seen"].action["click"][e] += 1
        known = {
            s for s in range(e, len(rows)) if rows[s] == rows[e] and int(seen.clock_E[s]) > int(seen.action_clock_E[e])
        }
        assert set(changed(before, ranker(after))) <= known
        if changes.get("full_layers") == 4:
            assert set(changed(before, ranker(after))) == known


def test_events_of_other_histories_are_seen_from_their_time_on_and_after_supervised_ones_of_the_same_time() -> None:
    ranker, batch = build("history")
    seen, bought = batch.histories["seen"], batch.histories["bought"]
    rows = torch.repeat_interleave(torch.arange(5), seen.lengths_R).tolist()
    rows_bought = torch.repeat_interleave(torch.arange(5), bought.lengths_R).tolist()
    for e, row in enumerate(rows_bought):
        after = copy.deepcopy(batch)
        after.histories["bought"].event["item"][e] += 1
        later = {s for s, r in enumerate(rows) if r == row and int(seen.time_E[s]) > int(bought.time_E[e])}
        assert set(changed(ranker(batch), ranker(after))) <= later


@pytest.mark.parametrize("action_tokens", ["merged", "separate"])
def test_a_request_sees_no_action_of_its_own_time_or_later(action_tokens: str) -> None:
    ranker, batch = build(action_tokens=action_tokens, full_layers=4)
    seen = batch.histories["seen"]
    seen.action_clock_E[2] = batch.clock_R[0]  # the request's own action
    seen.action_clock_E[3] = torch.iinfo(torch.int64).max  # never known
    before = ranker(batch)
    for e, expected in ((2, []), (3, []), (0, [0, 1, 2])):
        after = copy.deepcopy(batch)
        after.histories["seen"].action["click"][e] += 1
        assert changed(before, ranker(after)) == expected


def test_time_gaps_count_and_can_be_switched_off() -> None:
    for time_gaps, expected in ((True, [0, 1, 2]), (False, [])):
        ranker, batch = build(time_gaps=time_gaps)
        later = copy.deepcopy(batch)
        later.time_R[0] += 3600 * SECOND
        assert changed(ranker(batch), ranker(later)) == expected


@pytest.mark.parametrize("supervision", ["candidates", "history"])
def test_a_filler_row_passes_forward_and_backward(supervision: str) -> None:
    ranker = build_ranker(make_spec(supervision), make_config())
    spec = make_spec(supervision)
    for candidates in ([1], [0]):
        batch = make_input(spec, {"seen": [0]}, candidates)
        logits = ranker.double()(batch)
        assert logits.shape == (sum(candidates) if supervision == "candidates" else 0, 2)
        ranker.zero_grad()
        logits.sum().backward()
        gradients = [parameter.grad for parameter in ranker.parameters()]
        assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


def test_logits_are_float32_from_single_and_half_width_modules() -> None:
    spec = make_spec()
    ranker, batch = build_ranker(spec, make_config()), make_input(spec, {"seen": [4, 1]}, [1, 2])
    exact = ranker.double()(batch)
    assert ranker.float()(batch).dtype == torch.float32
    torch.testing.assert_close(ranker.float()(batch).double(), exact, rtol=1e-4, atol=1e-5)
    half = ranker.bfloat16()(batch)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.double(), exact, rtol=0.1, atol=0.05)


def test_the_same_step_twice_gives_the_same_bits() -> None:
    ranker, batch = build("history")
    assert_repeats_itself(ranker, batch)


def test_fields_become_tokens_one_by_one_or_in_even_groups() -> None:
    names = [f"f{i}" for i in range(7)]
    assert group_fields(names, Tokens()) == [(name,) for name in names]
    assert [len(group) for group in group_fields(names, Tokens(max_field_tokens=3))] == [2, 2, 3]
    stated = group_fields(names, Tokens(groups={"who": ("f6", "f1")}, max_field_tokens=3))
    assert stated == [("f6", "f1"), ("f0", "f2"), ("f3", "f4", "f5")]


def test_settings_that_do_not_fit_are_all_named() -> None:
    with pytest.raises(ValidationError) as caught:
        Model(dim=10, num_heads=4, num_layers=1, windows=(0,), din=DIN(attention_hidden=(8, 0)))
    expected = ("dim 10", "full_layers 2", "windows holds 0", "din.attention_hidden holds 0")
    assert all(part in str(caught.value) for part in expected)
    config = make_config(action_tokens="merged", tokens=Tokens(groups={"a": ("f0", "age"), "b": ("f0",)}))
    problems = check_ranker(make_spec("history"), config)
    assert len(problems) == 3
    with pytest.raises(ValueError, match="names 'age'") as refused:
        build_ranker(make_spec("history"), config)
    assert str(refused.value).splitlines() == problems
