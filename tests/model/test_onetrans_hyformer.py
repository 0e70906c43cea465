"""OneTrans and HyFormer: equal to the equations, forward and backward, in float64; a row and a candidate stand alone;
nothing of the future is seen."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from torch import nn

from model.hyformer import boosted_tokens
from model.inputs import RankerInput
from model.parameter_axes import parameter_axes
from model.query_boosting import TokenMixing
from model.rankers import build_ranker, check_ranker
from tests.model import reference_hyformer, reference_onetrans
from tests.model.builders import SECOND, make_config, make_input, make_spec, rows_of_history, select
from tests.model.comparing import assert_equal_to

LENGTHS = {"seen": [4, 0, 6, 1], "bought": [2, 0, 0, 3], "liked": [1, 0, 2, 0]}
CANDIDATES = [3, 1, 2, 4]
ONETRANS: dict[str, tuple[dict, dict]] = {
    "linear pyramid": ({"histories": 2, "max_length": 3}, {"num_layers": 3}),
    "stated pyramid": ({}, {"onetrans": {"kept": (3, 1)}}),
    "nothing kept": ({}, {"onetrans": {"kept": (2, 0)}, "num_layers": 3}),
    "no pyramid, separate actions": (
        {"histories": 3},
        {"onetrans": {"kept": (99,)}, "action_tokens": "separate", "num_layers": 2},
    ),
    "pyramid, separate actions, no gaps": (
        {"max_length": 3},
        {"action_tokens": "separate", "time_gaps": False, "num_layers": 3},
    ),
    "one layer, grouped fields": ({"static": 5}, {"num_layers": 1, "tokens": {"max_field_tokens": 2}}),
    "no static fields": ({"static": 0}, {"num_layers": 2}),
    "no histories": ({"histories": 0}, {"num_layers": 2}),
    "history": ({"supervision": "history"}, {"num_layers": 2}),
    "history, three histories": ({"supervision": "history", "histories": 3}, {"num_layers": 2}),
}
HYFORMER: dict[str, tuple[dict, dict]] = {
    f"{encoder}, {histories} histories, dim {dim}": (
        {"histories": histories, "static": 3 if dim == 8 else 2},
        {"num_layers": 2, "dim": dim, "hyformer": {"encoder": encoder, "queries": queries, "recent": 3}},
    )
    for encoder, histories, dim, queries in (
        ("full", 2, 8, 2),
        ("full", 1, 20, 3),
        ("recent", 2, 8, 1),
        ("recent", 3, 20, 2),
        ("swiglu", 2, 8, 2),
        ("swiglu", 0, 8, 2),
    )
}
CASES = {
    **{f"onetrans: {name}": ("onetrans", *case, reference_onetrans) for name, case in ONETRANS.items()},
    **{f"hyformer: {name}": ("hyformer", *case, reference_hyformer) for name, case in HYFORMER.items()},
}
KINDS: list[tuple[str, str, dict]] = [
    ("onetrans", "candidates", {}),
    ("onetrans", "history", {}),
    *[("hyformer", "candidates", {"hyformer": {"encoder": encoder, "recent": 2}}) for encoder in ("full", "recent")],
    ("hyformer", "candidates", {"hyformer": {"encoder": "swiglu"}}),
]


def build(kind: str, supervision: str, **changes: object) -> tuple[nn.Module, RankerInput]:
    torch.manual_seed(3)
    spec = make_spec(supervision, histories=2)
    ranker = build_ranker(spec, make_config(**{"kind": kind, "num_layers": 3, **changes})).double()
    return ranker, make_input(spec, LENGTHS, CANDIDATES, seed=4)


def changed(before: torch.Tensor, after: torch.Tensor) -> set[int]:
    return set(((before - after).abs().amax(1) > 1e-12).nonzero().flatten().tolist())


def rows_of_positions(batch: RankerInput, supervision: str) -> list[int]:
    lengths = batch.candidate_lengths_R if supervision == "candidates" else batch.histories["seen"].lengths_R
    return torch.repeat_interleave(torch.arange(len(lengths)), lengths).tolist()


@pytest.mark.parametrize("case", CASES)
def test_forward_and_gradients_equal_the_reference(case: str) -> None:
    """Shapes differ from case to case; every second length is 0."""
    kind, spec_changes, config_changes, reference = CASES[case]
    draw = random.Random(case)
    spec = make_spec(**spec_changes)
    lengths = {h.name: [draw.choice([0, draw.randint(1, 5)]) for _ in range(3)] for h in spec.histories}
    candidates = [draw.randint(1, 2) for _ in range(3)]
    batch = make_input(spec, lengths or {"none": [0] * 3}, candidates, seed=draw.randint(0, 99))
    assert_equal_to(reference.logits, spec, make_config(**{"kind": kind, **config_changes}), batch)


@pytest.mark.parametrize(("kind", "supervision", "changes"), KINDS)
def test_a_rows_logits_do_not_depend_on_its_batch(kind: str, supervision: str, changes: dict) -> None:
    ranker, batch = build(kind, supervision, **changes)
    rows = rows_of_positions(batch, supervision)
    parts = ranker(batch).split([rows.count(row) for row in range(4)])
    for chosen in ([0], [1], [3, 2], [3, 3, 0, 1], list(range(4)) * 9):
        torch.testing.assert_close(
            ranker(select(batch, chosen)), torch.cat([parts[row] for row in chosen]), rtol=1e-12, atol=1e-12
        )


@pytest.mark.parametrize(("kind", "supervision", "changes"), [case for case in KINDS if case[1] == "candidates"])
def test_candidates_do_not_see_each_other(kind: str, supervision: str, changes: dict) -> None:
    ranker, batch = build(kind, supervision, **changes)
    parts = ranker(batch).split(CANDIDATES)
    shuffled = ranker(select(batch, [0, 3], [[2, 0, 1], [3, 1, 2, 0]]))
    torch.testing.assert_close(shuffled, torch.cat([parts[0][[2, 0, 1]], parts[3][[3, 1, 2, 0]]]), rtol=0, atol=1e-12)
    alone = ranker(select(batch, [3] * 4, [[c] for c in range(4)]))
    torch.testing.assert_close(alone, parts[3], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("kind", "supervision", "changes"), [case for case in KINDS if case[1] == "candidates"])
def test_a_request_sees_no_action_of_its_own_time_or_later(kind: str, supervision: str, changes: dict) -> None:
    for action_tokens in ("merged", "separate") if kind == "onetrans" else ("auto",):
        ranker, batch = build(kind, supervision, action_tokens=action_tokens, **changes)
        seen = batch.histories["seen"]
        seen.action_clock_E[2] = batch.clock_R[0]  # the request's own action
        seen.action_clock_E[3] = torch.iinfo(torch.int64).max  # never known
        seen.action_clock_E[1] = batch.clock_R[0] - 1
        before = ranker(batch)
        for e, expected in ((2, set()), (3, set()), (1, {0, 1, 2})):
            after = copy.deepcopy(batch)
            after.histories["seen"].action["click"][e] += 1
            assert changed(before, ranker(after)) == expected


def test_onetrans_with_history_supervision_sees_neither_later_events_nor_unknown_actions() -> None:
    ranker, batch = build("onetrans", "history")
    before, rows = ranker(batch), rows_of_positions(batch, "history")
    seen, bought = batch.histories["seen"], batch.histories["bought"]
    for e in range(len(seen.time_E)):
        after = copy.deepcopy(batch)
        after.histories["seen"].event["item"][e] += 1
        assert changed(before, ranker(after)) == {s for s in range(e, len(rows)) if rows[s] == rows[e]}
        after = copy.deepcopy(batch)
        after.histories["seen"].action["click"][e] += 1
        assert changed(before, ranker(after)) == {
            s for s in range(e, len(rows)) if rows[s] == rows[e] and int(seen.clock_E[s]) > int(seen.action_clock_E[e])
        }
    for e, row in enumerate(torch.repeat_interleave(torch.arange(4), bought.lengths_R).tolist()):
        after = copy.deepcopy(batch)
        after.histories["bought"].event["item"][e] += 1
        later = {s for s, r in enumerate(rows) if r == row and int(seen.time_E[s]) > int(bought.time_E[e])}
        assert changed(before, ranker(after)) == later


def test_onetrans_scores_an_event_as_the_row_that_ends_before_it_would() -> None:
    """History supervision is a way to compute, not another model: the same weights under the other supervision."""
    changes = {"kind": "onetrans", "num_layers": 3, "action_tokens": "separate", "time_gaps": False}
    torch.manual_seed(2)
    spec, as_request = make_spec("history"), make_spec("candidates")
    by_event = build_ranker(spec, make_config(**changes)).double()
    by_request = build_ranker(as_request, make_config(**changes, onetrans={"kept": (99,)})).double()
    by_request.load_state_dict(by_event.state_dict())
    batch = make_input(spec, {"seen": LENGTHS["seen"]}, seed=7)
    seen, expected = batch.histories["seen"], by_event(batch)
    for position, row in enumerate(rows_of_positions(batch, "history")):
        first = int(seen.lengths_R[:row].sum())
        before = rows_of_history(seen, [row])
        count = position - first
        before.lengths_R = torch.tensor([count])
        for values in (before.event, before.action):
            for name in values:
                values[name] = values[name][:count]
        before.time_E, before.clock_E = before.time_E[:count], before.clock_E[:count]
        before.action_clock_E = before.action_clock_E[:count]
        request = RankerInput(
            {name: value[[row]] for name, value in batch.static.items()},
            {"seen": before},
            {name: value[[position]] for name, value in seen.event.items()},
            torch.tensor([1]),
            seen.time_E[[position]],
            seen.clock_E[[position]],
        )
        torch.testing.assert_close(by_request(request)[0], expected[position], rtol=1e-11, atol=1e-12)


def test_the_oldest_event_is_read_whatever_the_pyramid_or_the_recent_part_leaves_out() -> None:
    for kind, changes in (
        ("onetrans", {"num_layers": 1}),  # NS-tokens read every S-token that a layer takes in
        ("onetrans", {"num_layers": 2, "onetrans": {"kept": (2,)}}),
        ("hyformer", {"hyformer": {"encoder": "recent", "recent": 2}}),  # the newest look at all
    ):
        ranker, batch = build(kind, "candidates", **changes)
        after = copy.deepcopy(batch)
        after.histories["seen"].event["item"][4] += 1  # of row 2's six
        assert changed(ranker(batch), ranker(after)) == {4, 5}


def test_hyformer_keeps_the_times_of_histories_apart() -> None:
    """The times of one history do not move the gaps of another: `gap before` is within a history."""
    ranker, batch = build("hyformer", "candidates")
    after = copy.deepcopy(batch)
    after.histories["bought"].time_E = after.histories["bought"].time_E - SECOND
    gaps = [ranker._timeline(given).gap_E for given in (batch, after)]
    assert torch.equal(*gaps)


def test_token_mixing_hands_every_token_a_slice_of_each() -> None:
    x_CTD = torch.arange(2 * 4 * 8, dtype=torch.float64).view(2, 4, 8)
    even = TokenMixing(8, 4)(x_CTD)
    assert even[0, 1].tolist() == [2, 3, 10, 11, 18, 19, 26, 27]
    uneven = TokenMixing(8, 3)(x_CTD[:, :3])  # slices 0–1, 2–4, 5–7
    assert uneven[0].tolist() == [
        [0, 1, 0, 8, 9, 0, 16, 17, 0], [2, 3, 4, 10, 11, 12, 18, 19, 20], [5, 6, 7, 13, 14, 15, 21, 22, 23]
    ]  # fmt: skip


@pytest.mark.parametrize(("kind", "supervision", "changes"), KINDS)
def test_fillers_and_other_dtypes(kind: str, supervision: str, changes: dict) -> None:
    spec = make_spec(supervision)
    ranker = build_ranker(spec, make_config(kind=kind, num_layers=2, **changes))
    for candidates in ([1], [0]):
        ranker.zero_grad()
        logits = ranker.double()(make_input(spec, {"seen": [0]}, candidates))
        assert logits.shape == (sum(candidates) if supervision == "candidates" else 0, 2)
        logits.sum().backward()
        gradients = [parameter.grad for parameter in ranker.parameters()]
        assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    batch = make_input(spec, {"seen": [4, 1]}, [1, 2])
    exact = ranker.double()(batch)
    torch.testing.assert_close(ranker.float()(batch), exact.float(), rtol=1e-4, atol=1e-5)
    half = ranker.bfloat16()(batch)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, exact.float(), rtol=0.1, atol=0.05)


@pytest.mark.parametrize("kind", ["onetrans", "hyformer"])
def test_stretches_of_parameters_are_of_the_tokens_they_are_said_to_be(kind: str) -> None:
    """What another model begins with: of OneTrans' own matrices those of the same tokens, in another order too."""
    spec = make_spec(histories=2, static=5)
    config = make_config(kind=kind, dim=16, tokens={"groups": {"who": ("f3", "f0")}})
    axes, parameters = parameter_axes(spec, config), dict(build_ranker(spec, config).named_parameters())
    for name, of in axes.items():
        assert name in parameters
        assert of.axis < 0 or parameters[name].shape[of.axis] == sum(count for _, count in of.parts), name
    own = axes.get("blocks.3.own_up.weight")
    assert (own is None) == (kind == "hyformer")
    if own is not None:
        names = ("f3, f0", "f1", "f2", "f4", "candidate")
        assert own.parts == tuple((f"token of {name}, 16 wide", 1) for name in names)


def test_what_does_not_fit_is_said_in_one_line_each() -> None:
    spec = make_spec(histories=3, static=5)
    config = make_config(kind="hyformer", hyformer={"queries": 3})
    assert boosted_tokens(spec, config) == 15
    (line,) = check_ranker(spec, config)
    assert line.startswith("dim 8 with hyformer's 15 tokens")
    (line,) = check_ranker(make_spec("history"), make_config(kind="hyformer"))
    assert line.startswith('kind "hyformer" with history supervision → ')
    (line,) = check_ranker(make_spec("history"), make_config(kind="onetrans", onetrans={"kept": (4,)}))
    assert line.startswith("onetrans.kept [4] with history supervision → ")
    with pytest.raises(ValueError, match="kept holds -1"):
        make_config(onetrans={"kept": (-1,)})
