"""DCN-V2, DIN and HSTU equal their slow references, forward and backward, in float64."""

from __future__ import annotations

import random

import pytest

from model.config import Model
from model.inputs import InputSpec
from tests.model import rivals_reference
from tests.model.builders import make_config, make_input, make_spec
from tests.model.comparing import assert_equal_to

SMALL = {
    "dcnv2": {"cross_layers": 2, "hidden": (7, 5)},
    "din": {"attention_hidden": (6, 5), "hidden": (9, 4), "pairs_at_once": 8},
    "hstu": {"positions": 6, "time_buckets": 8},
}
CASES: dict[str, tuple[str, dict, dict]] = {
    "dcnv2": ("dcnv2", {}, {}),
    "dcnv2 of rank 3, three histories": ("dcnv2", {"histories": 3}, {"dcnv2": {"rank": 3, "hidden": ()}}),
    "dcnv2, history": ("dcnv2", {"supervision": "history"}, {}),
    "dcnv2, history, three histories": ("dcnv2", {"supervision": "history", "histories": 3}, {"time_gaps": False}),
    "din": ("din", {"histories": 2}, {}),
    "din, one hidden layer": ("din", {"static": 0}, {"din": {"attention_hidden": (6,), "hidden": ()}}),
    "din, history": ("din", {"supervision": "history"}, {}),
    "din, history, three histories": ("din", {"supervision": "history", "histories": 3}, {"din": {"pairs_at_once": 1}}),
    "hstu": ("hstu", {"histories": 2}, {}),
    "hstu, separate actions": ("hstu", {}, {"action_tokens": "separate", "field_attention": "bidirectional"}),
    "hstu, candidates see all": ("hstu", {"static": 0}, {"candidates_see": "all", "hstu": {"divisor": 3}}),
    "hstu, history": ("hstu", {"supervision": "history"}, {}),
    "hstu, history, three histories": ("hstu", {"supervision": "history", "histories": 3}, {}),
    **{f"{kind}, no histories": (kind, {"histories": 0}, {}) for kind in SMALL},
}


def small(kind: str, **changes: object) -> Model:
    """A small tower of this kind; `changes` of a kind's own section are laid over the small one's."""
    section = {**SMALL[kind], **changes.pop(kind, {})}  # type: ignore[dict-item]
    return make_config(kind=kind, num_layers=2, **{kind: section}, **changes)


def compare(spec: InputSpec, config: Model, lengths: dict[str, list[int]], candidates: list[int], seed: int) -> None:
    batch = make_input(spec, lengths, candidates, seed)
    assert_equal_to(rivals_reference.logits, spec, config, batch, seed)


@pytest.mark.parametrize("case", CASES)
def test_forward_and_gradients_equal_the_reference(case: str) -> None:
    kind, spec_changes, config_changes = CASES[case]
    spec = make_spec(**spec_changes)
    lengths = {"seen": [4, 0, 6, 1], "bought": [2, 0, 0, 3], "liked": [1, 0, 3, 0]}
    lengths = {history.name: lengths[history.name] for history in spec.histories} or {"none": [0] * 4}
    compare(spec, small(kind, **config_changes), lengths, [3, 1, 2, 4], seed=1)


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=pytest.mark.slow) for s in range(1, 25))])
def test_random_shapes_equal_the_reference(kind: str, seed: int) -> None:
    draw = random.Random(f"{kind} {seed}")
    spec = make_spec(draw.choice(["candidates", "history"]), draw.randint(1, 3), static=draw.randint(0, 5))
    rows = draw.randint(1, 4)
    lengths = {
        history.name: [draw.choice([0, 1, draw.randint(2, 9)]) for _ in range(rows)] for history in spec.histories
    }
    lengths[spec.histories[-1].name][-1] = 3
    config = small(kind, time_gaps=draw.random() < 0.7, tokens={"max_field_tokens": draw.randint(1, 4)})
    compare(spec, config, lengths, [draw.randint(1, 3) for _ in range(rows)], seed)
