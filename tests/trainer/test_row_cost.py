"""A row's cost is what torch counts when the ranker runs it."""

from __future__ import annotations

from typing import Any

import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from model.config import Model
from model.inputs import InputSpec
from model.rankers import build_ranker
from tests.model.builders import make_config, make_input, make_spec
from trainer.row_cost import row_cost


def counted(spec: InputSpec, config: Model, length: int) -> float:
    """Multiplications a row, of two alike: nothing is padded."""
    lengths = {history.name: [length // len(spec.histories)] * 2 for history in spec.histories}
    ranker = build_ranker(spec, config).double()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # its products are counted
        ranker(make_input(spec, lengths, [1] * 2))
    return counter.get_total_flops() / 2 / 2


@pytest.mark.parametrize("supervision", ["candidates", "history"])
@pytest.mark.parametrize(
    "changes",
    [
        {"full_layers": 2},
        {"full_layers": 4},
        {"full_layers": 0, "gate": False},
        {"kind": "hstu"},
        {"kind": "dcnv2", "dcnv2": {"hidden": (24,)}},
        {"kind": "dcnv2", "dcnv2": {"rank": 4, "hidden": (24,)}},
        {"kind": "din", "din": {"attention_hidden": (12, 8), "hidden": (24,)}},
    ],
)
def test_cost_grows_as_the_rankers_work(supervision: str, changes: dict[str, Any]) -> None:
    spec = make_spec(supervision, max_length=2000)
    config = make_config(dim=16, ffn_dim=32, windows=(8, 4), **changes)
    cost = row_cost(spec, config)
    for length in (50, 300):
        work = cost.fixed + cost.linear * length + cost.quadratic * length**2
        assert work == pytest.approx(counted(spec, config, length), rel=0.1)
