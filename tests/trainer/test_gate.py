"""A bad step changes nothing: not the tables, not the tower, not a moment of either optimizer."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from tests.pipelines.rows import make_rows, write_rows
from tests.trainer.runs import Run, differing, newest_state, saved_tensors, tiny_config, train_all
from trainer.gate import GradientGate
from trainer.guards.bad_steps import Seen, join

# Finite: an infinite one is a bad row, which the reader tells.
BAD_VALUES = {"overflowing": 3e38, "overflowing below": -3e38}


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_bad_step_leaves_weights_and_states_as_they_were(tmp_path: Path, world_size: int) -> None:
    """One row of the last batch carries a number the tower cannot bear; with two ranks, one of them sees nothing
    wrong."""
    rows = tmp_path / "rows"
    write_rows(rows / "dt=0" / "part-0.parquet", make_rows(15, seed=1))
    runs = [Run(tiny_config(rows, data={"segments": "0"}), tmp_path / "good")]
    for name, value in BAD_VALUES.items():
        bad = make_rows(5, seed=2)
        bad[3]["score"] = value
        write_rows(tmp_path / name / "dt=1" / "part-0.parquet", bad)
        shutil.copytree(rows / "dt=0", tmp_path / name / "dt=0")
        runs.append(Run(tiny_config(tmp_path / name, data={"segments": "0..1"}), tmp_path / f"run {name}"))
    train_all(runs, world_size)
    before = saved_tensors(tmp_path / "good")
    for name in BAD_VALUES:
        after = saved_tensors(tmp_path / f"run {name}")
        assert [found for found in differing(before, after) if not found.startswith("id_maps/")] == [], name
        state = newest_state(tmp_path / f"run {name}")
        assert (state.step, state.bad_steps) == (4, 1), name


def _gated(gate: GradientGate, hook: float) -> torch.Tensor:
    rows = {"a": torch.ones(3, 2, requires_grad=True), "b": torch.ones(2, 2, requires_grad=True)}
    out = gate.through(rows)
    loss = out["a"].sum() + 2 * out["b"].sum()
    out["b"].register_hook(lambda g: g * hook)
    gate.watch_loss(loss)
    loss.backward()
    return torch.cat([rows["a"].grad.flatten(), rows["b"].grad.flatten()])


def test_a_gradient_that_overflows_behind_a_finite_loss_is_stopped() -> None:
    gate = GradientGate(None)
    assert _gated(gate, float("inf")).eq(0).all()
    assert (gate.ok, gate.bad_steps, gate.step_loss) == (False, 1, None)
    assert gate.culprits == ["the gradient of rows of table b"]
    assert _gated(gate, 1.0).tolist() == [1.0] * 6 + [2.0] * 4
    assert (gate.ok, gate.bad_steps, gate.step_loss) == (True, 1, 14.0)


def test_a_dense_gradient_that_overflows_is_seen_before_the_tables_are_updated() -> None:
    gate = GradientGate(None)
    weight = torch.nn.Parameter(torch.ones(2))
    weight.register_hook(lambda g: g * float("nan"))
    gate.dense_gradients = lambda: [weight.grad] if weight.grad is not None else []
    gate.parameters = {"tower.weight": weight}
    row = torch.ones(1, 2, requires_grad=True)
    loss = (gate.through({"a": row})["a"] * weight).sum()
    gate.watch_loss(loss)
    loss.backward()
    assert not gate.ok
    assert gate.culprits == ["the gradient of tower.weight"]
    assert row.grad is not None
    assert row.grad.eq(0).all()


def test_a_loss_that_one_rank_found_is_named_before_what_it_has_spoilt_on_others() -> None:
    """The batch's rows are those of all ranks; at most five of a kind are named."""
    spoilt = Seen(0, tuple(f"the gradient of {n}" for n in "abcdefg"), {"f": (3, 9, 4)})
    cause = Seen(1, ("the loss",), {"f": (1, 5, 2), "g": (0, 0, 1)}, ("f row 5",))
    found = join(7, [spoilt, cause])
    assert found.words() == (
        "step 7: the loss (rank 1) is not finite; its batch is f rows 1–9 (6), g row 0; "
        "predictions are not finite in f row 5"
    )
    assert join(7, [spoilt]).words().startswith("step 7: the gradient of a, the gradient of b, ")
    assert "the gradient of e and 2 more are not finite; its batch is" in join(7, [spoilt]).words()
