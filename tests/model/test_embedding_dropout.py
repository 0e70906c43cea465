"""Embedding dropout thins what was looked up and nothing else, in training only."""

from __future__ import annotations

import torch

from model.embedding_dropout import EmbeddingDropout
from model.inputs import FieldSpec, HistoryInput, HistorySpec, InputSpec, RankerInput

SPEC = InputSpec(
    static=(
        *(FieldSpec(name, 8) for name in ("city", "zip", "zone")),
        *(FieldSpec(name, 1, dense=True) for name in ("income", "age", "tenure")),
    ),
    event=(FieldSpec("item", 8), FieldSpec("content", 8, dense=True)),
    action=(FieldSpec("rating", 8), FieldSpec("dwell", 1, dense=True)),
    histories=(HistorySpec("seen", ("item", "content"), ("rating", "dwell"), 10),),
    candidate=("item", "content"),
    tasks=("like",),
    supervision="candidates",
)
ROWS, EVENTS = 200, 1000


def ones(names: dict[str, int], count: int) -> dict[str, torch.Tensor]:
    return {name: torch.ones(count, width, requires_grad=True) for name, width in names.items()}


def batch() -> RankerInput:
    item = {"item": 8, "content": 8}
    times_E, times_R = torch.zeros(EVENTS, dtype=torch.int64), torch.zeros(ROWS, dtype=torch.int64)
    lengths_R = torch.full((ROWS,), EVENTS // ROWS)
    seen = HistoryInput(
        lengths_R, ones(item, EVENTS), ones({"rating": 8, "dwell": 1}, EVENTS), times_E, times_E, times_E
    )
    static = ones({"city": 8, "income": 1}, ROWS)
    blocks = {("zip", "zone"): torch.ones(ROWS, 16), ("age", "tenure"): torch.ones(ROWS, 2)}
    return RankerInput(
        static, {"seen": seen}, ones(item, ROWS), torch.ones_like(lengths_R), times_R, times_R, blocks=blocks
    )


def test_each_embedding_is_thinned_and_scaled_up_and_dense_values_stay_whole() -> None:
    torch.manual_seed(1)
    given = batch()
    thinned = EmbeddingDropout(SPEC, 0.25)(given)
    seen = thinned.histories["seen"]
    for values, field in (
        (thinned.static, "city"),
        (seen.event, "item"),
        (seen.action, "rating"),
        (thinned.candidates, "item"),
    ):
        assert set(values[field].unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
        assert abs(values[field].mean().item() - 1) < 0.05
        values[field].sum().backward()
    kept = given.histories["seen"].event["item"]
    assert torch.equal(kept.grad, seen.event["item"].detach())  # the gradient goes where the value went
    for before, after in (
        (given.static["income"], thinned.static["income"]),
        (given.histories["seen"].event["content"], seen.event["content"]),
        (given.histories["seen"].action["dwell"], seen.action["dwell"]),
        (given.candidates["content"], thinned.candidates["content"]),
    ):
        assert after is before
    assert seen.time_E is given.histories["seen"].time_E
    assert set(thinned.blocks["zip", "zone"].unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert thinned.blocks["age", "tenure"] is given.blocks["age", "tenure"]


def test_nothing_changes_in_evaluation_or_at_probability_zero() -> None:
    given = batch()
    assert EmbeddingDropout(SPEC, 0.25).eval()(given) is given
    assert EmbeddingDropout(SPEC, 0.0)(given) is given
