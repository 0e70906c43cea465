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
from trainer.row_work import WORK


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


@pytest.mark.parametrize(
    ("supervision", "changes"),
    [
        ("candidates", {"kind": "onetrans"}),
        ("candidates", {"kind": "onetrans", "onetrans": {"kept": (40, 10)}, "action_tokens": "separate"}),
        ("history", {"kind": "onetrans"}),
        *[("candidates", {"kind": "hyformer", "hyformer": {"encoder": e}}) for e in ("full", "recent", "swiglu")],
    ],
)
def test_work_of_onetrans_and_hyformer_is_what_torch_counts(supervision: str, changes: dict) -> None:
    spec = make_spec(supervision, histories=2, max_length=60)
    config = make_config(**{"dim": 16, "ffn_dim": 32, **changes})
    work, cost = WORK[config.kind], row_cost(spec, config)
    for length in (2, 40, 120):
        found = counted(spec, config, length)
        assert work(spec, config, length) == pytest.approx(found, rel=0.02)
        polynomial = cost.fixed + cost.linear * length + cost.quadratic * length**2
        assert polynomial == pytest.approx(found, rel=0.15)
