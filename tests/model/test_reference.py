"""The product equals the slow reference, forward and backward, in float64: every layer pattern, supervision and
[open] switch."""

from __future__ import annotations

import pytest

from tests.model import reference
from tests.model.builders import make_config, make_input, make_spec
from tests.model.comparing import assert_equal_to

LENGTHS = {"seen": [5, 0, 8, 1], "bought": [2, 0, 0, 3], "liked": [1, 0, 4, 0]}
CANDIDATES = [3, 1, 2, 4]

CASES: dict[str, tuple[dict, dict]] = {
    "2F2S": ({}, {}),
    "4F": ({}, {"full_layers": 4}),
    "4S": ({}, {"full_layers": 0, "windows": (5, 3, 2)}),
    "1F3S": ({}, {"full_layers": 1, "windows": (6, 1)}),
    "wide windows": ({}, {"windows": (64, 32)}),
    "no gate": ({}, {"gate": False}),
    "raw gate before the projection": ({}, {"gate_input": "raw", "gate_place": "before"}),
    "gate bias": ({}, {"gate_bias": True}),
    "bidirectional fields": ({}, {"field_attention": "bidirectional"}),
    "candidates see all": ({}, {"candidates_see": "all"}),
    "separate actions": ({}, {"action_tokens": "separate"}),
    "separate actions, three histories, 4S": ({"histories": 3}, {"action_tokens": "separate", "full_layers": 0}),
    "merged actions, three histories": ({"histories": 3}, {}),
    "no time gaps": ({"histories": 2}, {"time_gaps": False}),
    "grouped fields": ({"static": 5}, {"tokens": {"groups": {"who": ("f3", "f0")}, "max_field_tokens": 3}}),
    "no static fields": ({"static": 0}, {}),
    "no histories": ({"histories": 0}, {}),
    "transformer": ({}, {"kind": "transformer"}),
    "transformer, bidirectional fields": (
        {"histories": 2},
        {"kind": "transformer", "field_attention": "bidirectional"},
    ),
    "history": ({"supervision": "history"}, {}),
    "history, three histories": ({"supervision": "history", "histories": 3}, {}),
    "history, 4F, no gaps": ({"supervision": "history"}, {"full_layers": 4, "time_gaps": False}),
    "history, 4S": ({"supervision": "history", "histories": 2}, {"full_layers": 0}),
    "history, transformer": ({"supervision": "history"}, {"kind": "transformer"}),
}


@pytest.mark.parametrize("case", CASES)
def test_forward_and_gradients_equal_the_reference(case: str) -> None:
    spec_changes, config_changes = CASES[case]
    spec, config = make_spec(**spec_changes), make_config(**config_changes)
    lengths = {name: LENGTHS[name] for name in [h.name for h in spec.histories]} or {"none": [0] * len(CANDIDATES)}
    batch = make_input(spec, lengths, CANDIDATES)
    assert_equal_to(reference.logits, spec, config, batch)
