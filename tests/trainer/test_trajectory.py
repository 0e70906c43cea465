"""The trajectory of training does not depend on how it was run: cut over ranks, interrupted, evaluated in between, or
split in days."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from embeddings.config import Table
from embeddings.init import fill
from embeddings.specs import TableSpec
from tests.pipelines.rows import write_segments
from tests.trainer.runs import Run, differing, saved_tensors, tiny_config, train_all

Tensors = dict[str, torch.Tensor]
OWN_SETTINGS = {
    "item": Table(rows=256, mapping="vocabulary", buckets=8, dtype="fp16"),
    "words": Table(rows=97, sharding="row_wise", optimizer="sgd", lr=1.0, init="normal"),
    "tags": Table(rows=50, sharding="table_wise", dtype="fp16", optimizer="adagrad", frozen=True),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensors]:
    """{run: what its last checkpoint holds}. Processes are started once per world size; runs that go on from others
    come after them.

    `two` is the reference: two ranks over both days, never stopped. 8 steps, the last of them with a filler.
    """
    folder = tmp_path_factory.mktemp("trajectory")
    rows = write_segments(folder / "rows", {"2026-01-01": [14, 9], "2026-01-02": [11, 1]})

    def run(name: str, resume: Any = "never", **sections: Any) -> Run:
        return Run(tiny_config(rows, **sections), folder / "runs" / name, resume)

    shuffled = {"order": "shuffle", "epochs": 2}
    dropped = {"dropout": 0.3, "embedding_dropout": 0.3}
    often = {"every_steps": 1, "full_every": 4, "keep": 9}
    own = {"tables": OWN_SETTINGS, "forward_codec": "fp16", "backward_codec": "int8"}
    by_world_size = {
        2: [
            run("own settings", embeddings=own, train={"eval_every": 2}, data={"eval_segments": "2026-01-02"}),
            run("own settings, stopped", embeddings=own, train={"max_steps": 3}),
            run("own settings, stopped", "must", embeddings=own),
            run("two"),
            run("two again"),
            run("stopped at 3", train={"max_steps": 3}),
            run("stopped at 3", "must"),
            run("stopped at 5", train={"max_steps": 5}),
            run("stopped at 5", "must"),
            run("two, one, three", train={"max_steps": 3}),
            run("two, three", train={"max_steps": 3}),
            run("day by day", data={"segments": "2026-01-01"}),
            run("day by day", "must"),
            run("evaluated", train={"eval_every": 2}, data={"eval_segments": "2026-01-02"}),
            run("dropout", model=dropped),
            run("dropout, stopped", model=dropped, train={"max_steps": 3}),
            run("dropout, stopped", "must", model=dropped),
            run("differences", train={"max_steps": 3}, checkpoint=often),
            run("differences", "must", checkpoint=often),
            run("differences, three", train={"max_steps": 3}, checkpoint=often),
        ],
        1: [
            run("one"),
            run("two, one, three", "must", train={"max_steps": 6}),
            run("shuffled", data=shuffled),
            run("shuffled, cut", data=shuffled, train={"max_steps": 9}),
            run("shuffled, cut", "must", data=shuffled),
        ],
        3: [
            run("three"),
            run("two, one, three", "must"),
            run("two, three", "must"),
            run("differences, three", "must", checkpoint=often),
        ],
    }
    for world_size, runs in by_world_size.items():
        train_all(runs, world_size)
    names = {each.run_dir for runs in by_world_size.values() for each in runs}
    return {path.name: saved_tensors(path) for path in names}


def test_the_same_run_gives_the_same_bits(trained: dict[str, Tensors]) -> None:
    assert differing(trained["two"], trained["two again"]) == []


@pytest.mark.parametrize("world_size", ["one", "three"])
def test_any_cut_of_a_global_batch_gives_the_same_update(trained: dict[str, Tensors], world_size: str) -> None:
    assert differing(trained["two"], trained[world_size], tolerance=2e-5) == []


def test_tables_with_settings_of_their_own_resume_bit_for_bit_and_frozen_ones_never_change(
    trained: dict[str, Tensors],
) -> None:
    """With an evaluation in between, and with quantised rows on the wire."""
    found = trained["own settings"]
    assert differing(found, trained["own settings, stopped"]) == []
    assert (found["tables/item/weight"].dtype, found["tables/words/weight"].dtype) == (torch.float16, torch.float32)
    start = torch.empty(50, 8, dtype=torch.float16)
    fill(start, TableSpec("tags", 50, 8, "hash", 0, "table_wise", dtype="fp16"), tiny_config(Path()).train.seed)
    assert torch.equal(found["tables/tags/weight"], start)
    assert not found["tables/tags/momentum1"].any()
    assert found["tables/item/momentum1"].any()


@pytest.mark.parametrize("run", ["stopped at 3", "stopped at 5"])
def test_resumed_equals_never_stopped(trained: dict[str, Tensors], run: str) -> None:
    assert differing(trained["two"], trained[run]) == []


@pytest.mark.parametrize("run", ["two, one, three", "two, three"])
def test_resumed_on_other_ranks_goes_on_with_the_same_batches(trained: dict[str, Tensors], run: str) -> None:
    assert differing(trained["two"], trained[run], tolerance=2e-5) == []


def test_a_chain_of_differences_resumes_as_full_checkpoints_do(trained: dict[str, Tensors]) -> None:
    """Written beside the training, on the same ranks and on others."""
    assert differing(trained["two"], trained["differences"]) == []
    assert differing(trained["two, three"], trained["differences, three"]) == []


def test_two_days_in_two_runs_equal_one_run(trained: dict[str, Tensors]) -> None:
    assert differing(trained["two"], trained["day by day"]) == []


def test_evaluation_leaves_the_trajectory_alone(trained: dict[str, Tensors]) -> None:
    assert differing(trained["two"], trained["evaluated"]) == []


def test_shuffled_epochs_resume_too(trained: dict[str, Tensors]) -> None:
    assert differing(trained["shuffled"], trained["shuffled, cut"]) == []


def test_dropout_resumes_to_the_bit_and_does_drop(trained: dict[str, Tensors]) -> None:
    assert differing(trained["dropout"], trained["dropout, stopped"]) == []
    assert differing(trained["two"], trained["dropout"], tolerance=2e-5) != []
