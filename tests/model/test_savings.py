"""The four savings are exact and every backend is the same attention: in float64, forward and backward, for random
shapes, against the plain full computation on the slow backend."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.attention import make_layouts
from model.bands import Band
from model.config import Savings
from model.inputs import InputSpec, RankerInput
from model.padded import one_row_per_candidate
from model.rankers import build_ranker, check_ranker
from model.tower import StreamTower, place_tokens
from tests.model.builders import float_leaves, make_config, make_input, make_spec, select

ALL_OFF = {"cone": False, "packed": False, "request_rows": False}
MAX_LENGTH = 40  # several blocks of a band, and with actions more than one chunk of queries
PATTERNS = (4, 3, 2, 1, 0)


def outcome(spec: InputSpec, batch: RankerInput, state: dict[str, torch.Tensor], **changes: Any) -> list[torch.Tensor]:
    """Logits, then gradients of every input and parameter."""
    ranker = build_ranker(spec, make_config(**changes)).double()
    ranker.load_state_dict(state)
    inputs = float_leaves(batch)
    leaves = [leaf.requires_grad_() for leaf in inputs] + list(ranker.parameters())
    logits = ranker(batch)
    pull = torch.linspace(-1, 1, logits.numel(), dtype=torch.float64).view_as(logits)
    found = torch.autograd.grad((logits * pull).sum(), leaves, allow_unused=True)
    assert all(gradient is not None for gradient in found[len(inputs) :]), "a gradient all-reduce would stall"
    return [logits, *(torch.zeros_like(a) if g is None else g for a, g in zip(leaves, found, strict=True))]


@st.composite
def cases(draw: st.DrawFn) -> tuple[InputSpec, RankerInput, dict[str, Any], dict[str, Any]]:
    supervision = draw(st.sampled_from(["candidates", "history"]))
    spec = make_spec(supervision, draw(st.integers(1, 3)), static=draw(st.integers(0, 3)), max_length=MAX_LENGTH)
    rows = draw(st.integers(1, 5))
    length = st.sampled_from([0, 1, 3, 17, MAX_LENGTH])
    lengths = {h.name: [draw(length) for _ in range(rows)] for h in spec.histories}
    batch = make_input(spec, lengths, [draw(st.sampled_from([0, 1, 4])) for _ in range(rows)], draw(st.integers(0, 99)))
    model: dict[str, Any] = {
        "full_layers": draw(st.sampled_from(PATTERNS)),
        "windows": draw(st.sampled_from([(1,), (4, 2), (9, 5, 3), (64, 16)])),
        "field_attention": draw(st.sampled_from(["causal", "bidirectional"])),
        "candidates_see": draw(st.sampled_from(["history", "all"])),
    }
    if supervision == "candidates":
        model["action_tokens"] = draw(st.sampled_from(["merged", "separate"]))
    on: dict[str, Any] = {name: draw(st.booleans()) for name in ALL_OFF}
    if supervision == "candidates" and model["candidates_see"] == "all":
        on["request_rows"] = True
    return spec, batch, model, {"attention": draw(st.sampled_from(["auto", "products", "sdpa"])), "savings": on}


def check(case: tuple[InputSpec, RankerInput, dict[str, Any], dict[str, Any]]) -> None:
    spec, batch, model, ours = case
    plain_savings = {**ALL_OFF, "request_rows": model["candidates_see"] == "all"}
    torch.manual_seed(1)
    state = build_ranker(spec, make_config(**model)).double().state_dict()
    state = {name: value + 0.3 * torch.randn_like(value) for name, value in state.items()}
    plain = outcome(spec, batch, state, **model, attention="reference", savings=plain_savings)
    for savings in ({}, ours["savings"]):
        found = outcome(spec, batch, state, **model, attention=ours["attention"], savings=savings)
        for a, b in zip(found, plain, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(cases())
def test_savings_and_backends_equal_the_plain_full_computation(case: Any) -> None:
    check(case)


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(cases())
def test_savings_and_backends_equal_the_plain_full_computation_at_length(case: Any) -> None:
    check(case)


def test_history_supervision_equals_a_row_for_each_event() -> None:
    """T examples of one pass are those of T rows that end with their event."""
    spec = make_spec("history", max_length=MAX_LENGTH)
    torch.manual_seed(2)
    ranker, batch = build_ranker(spec, make_config(windows=(9, 5))).double(), make_input(spec, {"seen": [19, 6]})
    logits = ranker(batch)
    for last in (0, 4, 18):
        short = select(batch, [0])
        history = short.histories["seen"]
        history.lengths_R = torch.tensor([last + 1])
        history.event = {name: value[: last + 1] for name, value in history.event.items()}
        history.action = {name: value[: last + 1] for name, value in history.action.items()}
        history.time_E, history.clock_E = history.time_E[: last + 1], history.clock_E[: last + 1]
        history.action_clock_E = history.action_clock_E[: last + 1]
        torch.testing.assert_close(ranker(short)[-1], logits[last], rtol=0, atol=1e-12)


def pairs(length: int, window: int | None) -> int:
    """Queries · keys that a layer over two rows multiplies."""
    spec = make_spec("history", max_length=length)
    config = make_config(num_layers=1, full_layers=0 if window else 1, windows=(window or 1,))
    tower = build_ranker(spec, config)
    assert isinstance(tower, StreamTower)
    _, stream = place_tokens(spec, config, tower.tokens, make_input(spec, {"seen": [length, length]}))
    layout = make_layouts(stream, [window])[-1][0]
    assert isinstance(layout.stretches[0].keys, Band) == (window is not None)
    return sum(stretch.visible_b1qt.numel() for stretch in layout.stretches)


def test_a_sliding_layer_costs_as_much_as_its_row_is_long() -> None:
    assert pairs(2048, 16) < 2.1 * pairs(1024, 16)
    assert pairs(1024, None) > 3.5 * pairs(512, None)


def test_savings_that_cannot_be_switched_off_are_refused() -> None:
    without = make_config(savings=Savings(request_rows=False), candidates_see="all")
    assert "savings.request_rows" in check_ranker(make_spec(), without)[0]
    rival = make_config(kind="hstu", savings=Savings(cone=False, packed=False))
    assert len(check_ranker(make_spec(), rival)) == 2


def test_a_row_for_each_candidate_has_the_blocks_of_its_request() -> None:
    spec = make_spec()
    batch = make_input(spec, {"seen": [3, 0]}, [2, 1])
    block = torch.arange(4.0).view(2, 2)
    alone = one_row_per_candidate(replace(batch, blocks={("a", "b"): block}))
    assert torch.equal(alone.blocks["a", "b"], block[[0, 0, 1]])
