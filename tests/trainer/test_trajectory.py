"""The trajectory of training does not depend on how it was run: cut over ranks, interrupted, evaluated in between, or
split in days."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pipelines.rows import write_segments
from tests.trainer.runs import differing, saved_tensors, tiny_config, train


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_segments(tmp_path_factory.mktemp("rows"), {"2026-01-01": [14, 9], "2026-01-02": [11, 1]})


@pytest.fixture(scope="module")
def two_ranks(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference: two ranks over both days, never stopped. 8 steps, the last of them with a filler."""
    run = tmp_path_factory.mktemp("reference") / "run"
    train(tiny_config(rows), run, 2)
    return run


def test_the_same_run_gives_the_same_bits(rows: Path, two_ranks: Path, tmp_path: Path) -> None:
    train(tiny_config(rows), tmp_path / "again", 2)
    assert differing(saved_tensors(two_ranks), saved_tensors(tmp_path / "again")) == []


@pytest.mark.parametrize("world_size", [1, 3])
def test_any_cut_of_a_global_batch_gives_the_same_update(
    rows: Path, two_ranks: Path, tmp_path: Path, world_size: int
) -> None:
    train(tiny_config(rows), tmp_path / "run", world_size)
    assert differing(saved_tensors(two_ranks), saved_tensors(tmp_path / "run"), tolerance=2e-5) == []


@pytest.mark.parametrize("steps", [3, 5])
def test_resumed_equals_never_stopped(rows: Path, two_ranks: Path, tmp_path: Path, steps: int) -> None:
    run = tmp_path / "run"
    train(tiny_config(rows, train={"max_steps": steps}), run, 2)
    train(tiny_config(rows), run, 2, resume="must")
    assert differing(saved_tensors(two_ranks), saved_tensors(run)) == []


def test_resumed_on_other_ranks_goes_on_with_the_same_batches(rows: Path, two_ranks: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(tiny_config(rows, train={"max_steps": 3}), run, 1)
    train(tiny_config(rows, train={"max_steps": 6}), run, 3, resume="must")
    train(tiny_config(rows), run, 2, resume="must")
    assert differing(saved_tensors(two_ranks), saved_tensors(run), tolerance=2e-5) == []


def test_two_days_in_two_runs_equal_one_run(rows: Path, two_ranks: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(tiny_config(rows, data={"segments": "2026-01-01"}), run, 2)
    train(tiny_config(rows), run, 2, resume="must")
    assert differing(saved_tensors(two_ranks), saved_tensors(run)) == []


def test_evaluation_leaves_the_trajectory_alone(rows: Path, two_ranks: Path, tmp_path: Path) -> None:
    config = tiny_config(rows, train={"eval_every": 2}, data={"eval_segments": "2026-01-02"})
    train(config, tmp_path / "run", 2)
    assert differing(saved_tensors(two_ranks), saved_tensors(tmp_path / "run")) == []


def test_shuffled_epochs_resume_too(rows: Path, tmp_path: Path) -> None:
    shuffled = {"order": "shuffle", "epochs": 2}
    train(tiny_config(rows, data=shuffled), tmp_path / "whole", 1)
    train(tiny_config(rows, data=shuffled, train={"max_steps": 9}), tmp_path / "cut", 1)
    train(tiny_config(rows, data=shuffled), tmp_path / "cut", 1, resume="must")
    assert differing(saved_tensors(tmp_path / "whole"), saved_tensors(tmp_path / "cut")) == []
