"""What a user relies on, of DCN-V2, DIN and HSTU: a row stands alone, the future is out of sight, and every parameter
has a gradient."""

from __future__ import annotations

import copy
from typing import Any, get_args

import pytest
import torch
from torch import nn

from model.config import Model
from model.inputs import RankerInput
from model.rankers import build_ranker, check_ranker
from tests.model.builders import make_config, make_input, make_spec, select
from tests.model.comparing import assert_repeats_itself
from tests.model.test_rivals_reference import SMALL, small

LENGTHS = {"seen": [5, 0, 8, 1, 3], "bought": [2, 0, 0, 3, 1]}
CANDIDATES = [3, 1, 2, 4, 1]
of_each_kind = pytest.mark.parametrize("kind", SMALL)
in_each_supervision = pytest.mark.parametrize("supervision", ["candidates", "history"])


def build(kind: str, supervision: str = "candidates") -> tuple[nn.Module, RankerInput]:
    torch.manual_seed(3)
    ranker = build_ranker(make_spec(supervision, histories=2), small(kind)).double()
    with torch.no_grad():
        for parameter in ranker.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return ranker, make_input(make_spec(supervision, histories=2), LENGTHS, CANDIDATES, seed=4)


def changed(before: torch.Tensor, after: torch.Tensor) -> set[int]:
    return set(((before - after).abs().amax(1) > 1e-12).nonzero().flatten().tolist())


def test_every_kind_is_a_file_of_its_own() -> None:
    for kind in get_args(Model.model_fields["kind"].annotation):
        ranker = build_ranker(make_spec(), make_config(kind=kind, dim=32))
        assert type(ranker).__module__ == f"model.{kind}"


@pytest.mark.parametrize("kind", ["dcnv2", "din"])
def test_keys_of_other_kinds_refuse_nothing(kind: str) -> None:
    config = make_config(kind=kind, dim=9, num_heads=4, full_layers=9, action_tokens="merged")
    assert check_ranker(make_spec("history"), config) == []


@of_each_kind
@in_each_supervision
def test_a_rows_logits_do_not_depend_on_its_batch(kind: str, supervision: str) -> None:
    ranker, batch = build(kind, supervision)
    counts = batch.candidate_lengths_R if supervision == "candidates" else batch.histories["seen"].lengths_R
    parts = ranker(batch).split(counts.tolist())
    for rows in ([0], [1], [4, 2], [3, 3, 0, 1], list(range(5)) * 8):
        together = ranker(select(batch, rows))
        torch.testing.assert_close(together, torch.cat([parts[r] for r in rows]), rtol=1e-12, atol=1e-12)


@of_each_kind
def test_candidates_of_a_row_equal_rows_of_one_candidate_in_any_order(kind: str) -> None:
    ranker, batch = build(kind)
    parts = ranker(batch).split(CANDIDATES)
    shuffled = ranker(select(batch, [0, 3], [[2, 0, 1], [3, 1, 2, 0]]))
    torch.testing.assert_close(shuffled, torch.cat([parts[0][[2, 0, 1]], parts[3][[3, 1, 2, 0]]]), rtol=0, atol=1e-12)
    alone = ranker(select(batch, [3] * 4, [[c] for c in range(4)]))
    torch.testing.assert_close(alone, parts[3], rtol=0, atol=1e-12)


@of_each_kind
def test_history_supervision_sees_what_came_before_and_what_was_known_and_no_more(kind: str) -> None:
    ranker, batch = build(kind, "history")
    before, seen, bought = ranker(batch), batch.histories["seen"], batch.histories["bought"]
    rows = torch.repeat_interleave(torch.arange(5), seen.lengths_R).tolist()

    def after(history: str, part: str, field: str, event: int) -> set[int]:
        altered = copy.deepcopy(batch)
        getattr(altered.histories[history], part)[field][event] += 1
        return changed(before, ranker(altered))

    for e, row in enumerate(rows):
        later = {s for s in range(e, len(rows)) if rows[s] == row}
        assert after("seen", "event", "item", e) == later
        known = {s for s in later if int(seen.clock_E[s]) > int(seen.action_clock_E[e])}
        assert after("seen", "action", "click", e) == known
    for e, row in enumerate(torch.repeat_interleave(torch.arange(5), bought.lengths_R).tolist()):
        later = {s for s, r in enumerate(rows) if r == row and int(seen.time_E[s]) > int(bought.time_E[e])}
        assert after("bought", "event", "item", e) == later


@of_each_kind
def test_a_request_sees_no_action_of_its_own_time_or_later(kind: str) -> None:
    ranker, batch = build(kind)
    seen = batch.histories["seen"]
    seen.action_clock_E[2] = batch.clock_R[0]  # the request's own action
    seen.action_clock_E[3] = torch.iinfo(torch.int64).max  # never known
    before = ranker(batch)
    for e, expected in ((2, set()), (3, set()), (0, {0, 1, 2})):
        after = copy.deepcopy(batch)
        after.histories["seen"].action["click"][e] += 1
        assert changed(before, ranker(after)) == expected


@of_each_kind
@in_each_supervision
def test_every_parameter_has_a_finite_gradient_even_from_rows_of_nothing(kind: str, supervision: str) -> None:
    spec = make_spec(supervision, histories=2)
    ranker = build_ranker(spec, small(kind))
    for lengths, candidates in (([0], [1]), ([0], [0]), ([0, 3], [2, 0])):
        batch = make_input(spec, {"seen": lengths, "bought": [0] * len(lengths)}, candidates)
        logits = ranker(batch)
        assert logits.shape == (sum(candidates if supervision == "candidates" else lengths), 2)
        ranker.zero_grad()
        logits.sum().backward()
        for name, parameter in ranker.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


@of_each_kind
@in_each_supervision
def test_logits_are_float32_from_single_and_half_width_modules(kind: str, supervision: str) -> None:
    ranker, batch = build(kind, supervision)
    exact = ranker(batch)
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 0.2)):
        logits = ranker.to(dtype)(batch)
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits.double(), exact, rtol=tolerance, atol=tolerance)


@of_each_kind
def test_the_same_step_twice_gives_the_same_bits(kind: str) -> None:
    ranker, batch = build(kind, "history")
    assert_repeats_itself(ranker, batch)


def test_din_holds_one_block_of_pairs_though_a_row_has_half_the_square_of_its_length() -> None:
    """What is kept for the backward pass doubles with the length, and is multiplied by four without blocks."""

    def kept(length: int, **own: Any) -> int:
        spec, total = make_spec("history"), 0
        ranker = build_ranker(spec, small("din", din=own))

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal total
            total += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            ranker(make_input(spec, {"seen": [length]}))
        return total

    assert kept(128, pairs_at_once=256) < 2.6 * kept(64, pairs_at_once=256)
    assert kept(128, pairs_at_once=10**6) > 3.5 * kept(64, pairs_at_once=10**6)
