"""Tables in 2D: groups of ranks that hold a copy each train what one copy would, and are saved as one. And a plan that
is given back is trained by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from embeddings.config import Embeddings, Table
from embeddings.plan import anywhere, make_placement, report
from embeddings.specs import table_specs
from tests.pipelines.rows import write_segments
from tests.trainer.runs import Run, differing, newest_state, saved_tensors, tiny_config, train_all
from trainer.checkpoint import manifest
from trainer.run_dir import RunDir

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

TABLES = {
    "item": Table(rows=256, sharding="column_wise"),
    "words": Table(rows=97, sharding="row_wise"),
    "tags": Table(rows=50, sharding="table_wise"),
}
ALONE: dict[str, Any] = {"tables": TABLES, "optimizer": "sgd", "lr": 0.1}
COPIES = ALONE | {"replicas": 2}
LATER = COPIES | {"replica_sync_steps": 3}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the runs: of 8 steps where nothing else is said."""
    folder = tmp_path_factory.mktemp("copies")
    rows = write_segments(folder / "rows", {"2026-01-01": [14, 9], "2026-01-02": [11, 1]})

    def run(name: str, embeddings: dict[str, Any], resume: Any = "never", **sections: Any) -> Run:
        return Run(tiny_config(rows, embeddings=embeddings, **sections), folder / name, resume)

    elsewhere = {"tables": TABLES | {"tags": Table(rows=50, sharding="table_wise", ranks=(1,))}}
    pinned = tiny_config(rows, embeddings=ALONE | elsewhere)
    specs = table_specs(pinned.schema, pinned.embeddings)
    placement = make_placement(specs, 2, config=pinned.embeddings)
    (folder / "plan.json").write_text(json.dumps(report(placement, specs, pinned.embeddings, 2).to_json()))
    often = {"every_steps": 2, "keep": 9, "full_every": 9}
    train_all([run("alone", ALONE), run("alone, short", ALONE, train={"max_steps": 3})], 1)
    train_all(
        [
            run("two copies", COPIES),
            run("later", LATER, checkpoint=often),
            run("later, stopped", LATER, train={"max_steps": 6}),
            run("later, stopped", LATER, "must"),
            run("adagrad", COPIES | {"optimizer": "rowwise_adagrad"}),
            run("given back", ALONE | {"plan": str(folder / "plan.json")}),
        ],
        2,
    )
    train_all([run("two groups of two", COPIES, train={"max_steps": 3})], 4)
    return folder


@pytest.mark.parametrize(("alone", "name"), [("alone", "two copies"), ("alone, short", "two groups of two")])
def test_copies_averaged_every_step_are_one_copy_trained_on_all(runs: Path, alone: str, name: str) -> None:
    assert differing(saved_tensors(runs / alone), saved_tensors(runs / name), tolerance=2e-6) == []


def test_copies_do_train_apart_in_between(runs: Path) -> None:
    found = differing(saved_tensors(runs / "alone"), saved_tensors(runs / "later"), tolerance=2e-6)
    assert any(line.startswith("tables/") for line in found)


def test_checkpoints_wait_for_a_step_at_which_the_copies_are_equal(runs: Path) -> None:
    """Due every 2 steps, averaged every 3: after 2 and 4 comes 3 and 6, and what is due at 6 is saved there; the end is
    always saved."""
    steps = [found.step for found in RunDir(runs / "later").step_dirs()]
    assert steps == [3, 6, 8]
    assert newest_state(runs / "later").step == 8


def test_resumed_equals_never_stopped_and_differences_hold_what_other_copies_touched(runs: Path) -> None:
    """The one ends in a full checkpoint, the other in a difference to a difference."""
    bases = []
    for name in ("later", "later, stopped"):
        bases.append(manifest.read_commit(RunDir(runs / name).require_latest()).base)
    assert bases[0] is not None
    assert bases[1] is None
    assert differing(saved_tensors(runs / "later"), saved_tensors(runs / "later, stopped")) == []


def test_one_copy_is_saved(runs: Path) -> None:
    for name in ("two copies", "two groups of two"):
        path = RunDir(runs / name).require_latest()
        index = manifest.read_index(path, manifest.read_commit(path))
        for tensor, record in index.tensors.items():
            cells = sum(torch.Size(chunk.sizes).numel() for chunk in record.chunks)
            assert cells == torch.Size(record.size).numel(), tensor


def test_states_are_averaged_too(runs: Path) -> None:
    states = {n: t for n, t in saved_tensors(runs / "adagrad").items() if n.startswith("tables/") and "weight" not in n}
    assert states
    assert all(bool((state > 0).any()) for state in states.values())


def test_a_plan_given_back_is_trained_by(runs: Path) -> None:
    """Its `tags` are on rank 1, where they would not be put."""
    given, used, chosen = (
        json.loads(path.read_text())
        for path in (runs / "plan.json", RunDir(runs / "given back").plan_json, RunDir(runs / "two copies").plan_json)
    )
    assert _boxes(used) == _boxes(given)
    assert _boxes(used)["tags"] == [(1, 0, 50, 0, 8)]
    assert (chosen["world_size"], chosen["replicas"]) == (2, 2)
    assert differing(saved_tensors(runs / "alone"), saved_tensors(runs / "given back"), tolerance=2e-6) == []


def _boxes(plan: dict[str, Any]) -> dict[str, list[tuple[int, ...]]]:
    return {table["name"]: [tuple(shard.values()) for shard in table["shards"]] for table in plan["tables"]}


def test_evaluation_is_not_bound_to_the_machines_of_training() -> None:
    tables = {"a": Table(rows=9, sharding="column_wise", ranks=(5,), kernel="fused_uvm")}
    freed = anywhere(Embeddings(replicas=4, plan="plan.json", kernel="fused_uvm_caching", tables=tables))
    assert freed == Embeddings(tables={"a": Table(rows=9, sharding="column_wise")})
