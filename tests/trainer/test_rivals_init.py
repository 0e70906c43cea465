"""A ranker that reads all tokens end to end begins with another's: what belongs to a field goes where that field is
now."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from embeddings.held import whole
from model.config import Model
from model.inputs import InputSpec
from model.parameter_axes import parameter_axes
from model.rankers import build_ranker
from tests.model.builders import make_input, make_spec
from tests.model.test_rivals_reference import small
from tests.trainer.saved_runs import save
from trainer.checkpoint.reading import SavedTensors
from trainer.config_sections import Init
from trainer.init_account import Account
from trainer.init_tower import DENSE, TowerCarrier
from trainer.model_description import RANKER, Axes, ModelDescription

LENGTHS = {"seen": [5, 0, 3], "bought": [2, 1, 0]}
CASES = {
    "dcnv2": small("dcnv2"),
    "dcnv2 of rank 3": small("dcnv2", dcnv2={"rank": 3}),
    "dcnv2, crosses alone": small("dcnv2", dcnv2={"hidden": ()}),
    "din": small("din"),
    "din, no network on top": small("din", din={"hidden": ()}),
}


def described(spec: InputSpec, config: Model) -> ModelDescription:
    axes = {
        RANKER + name: Axes(parts=a.parts, axis=a.axis, family=a.family, across=a.across)
        for name, a in parameter_axes(spec, config).items()
    }
    return ModelDescription(axes=axes)


@pytest.mark.parametrize("case", CASES)
def test_parameters_follow_their_fields(tmp_path: Path, case: str) -> None:
    """One field is dropped, one comes new, the others change places. Where the old model saw the dropped field as
    nothing, and the new one sees the new field as nothing, both give the same logits."""
    config, old_spec = CASES[case], make_spec(histories=2)
    f0, f1, f2 = old_spec.static
    new_spec = replace(old_spec, static=(f2, replace(f1, name="new"), f0), tasks=("buy", "like", "click"))
    torch.manual_seed(1)
    old, new = (build_ranker(spec, config).double() for spec in (old_spec, new_spec))
    with torch.no_grad():
        for parameter in (*old.parameters(), *new.parameters()):
            parameter.add_(torch.randn_like(parameter) * 0.3)
    saved_as = {f"{DENSE}{RANKER}{name}": value.detach() for name, value in old.named_parameters()}
    path = save(tmp_path / "step_00000004", saved_as)
    account = Account("another")
    tensors = {f"{DENSE}{RANKER}{name}": whole(value.data) for name, value in new.named_parameters()}
    with SavedTensors(path) as saved:
        TowerCarrier(saved, tensors, Init(), account).carry(described(old_spec, config), described(new_spec, config))

    with torch.no_grad():  # such a token is nothing to DCN-V2 and DIN
        for ranker in (old, new):
            ranker.tokens.fields.projections[1].weight.zero_()
            ranker.tokens.fields.projections[1].bias.zero_()
    before, after = make_input(old_spec, LENGTHS, [2, 1, 3]), make_input(new_spec, LENGTHS, [2, 1, 3])
    after.histories, after.candidates = before.histories, before.candidates
    after.time_R, after.clock_R = before.time_R, before.clock_R
    after.static |= {name: before.static[name] for name in ("f0", "f2")}
    torch.testing.assert_close(new(after)[:, [2, 0]], old(before), rtol=0, atol=1e-12)
    assert not [line for line in account.lines() if "it was" in line]
