"""Managed tables through whole runs: evictions under training, resumed, evaluated, and cut over ranks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from embeddings.config import Table
from embeddings.init import fill
from embeddings.specs import table_specs
from tests.pipelines.rows import write_segments
from tests.trainer.runs import Run, differing, saved_tensors, tiny_config, train_all
from trainer.config import Config
from trainer.job import Job
from trainer.stop import LocalStop
from trainer.worker import run_evaluation

Tensors = dict[str, torch.Tensor]
TABLES = {
    "item": Table(rows=28, mapping="managed", buckets=4),
    "user_id": Table(rows=10, mapping="managed", buckets=2, evict="lfu"),
    "words": Table(rows=40, mapping="managed", buckets=3, admit_after=2),
    "tags": Table(rows=50, mapping="vocabulary", buckets=2),
}
STOPPED = 4  # steps before a run is resumed, and where evaluations are compared


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("managed")


def config(folder: Path, **sections: Any) -> Config:
    base = tiny_config(folder / "rows", **sections)
    return replace(base, embeddings=base.embeddings.model_copy(update={"tables": TABLES}))


@pytest.fixture(scope="module")
def trained(folder: Path) -> dict[str, Tensors]:
    """{run: what its last checkpoint holds}: `two` is the reference."""
    write_segments(folder / "rows", {"2026-01-01": [14, 9], "2026-01-02": [11, 1]})

    def run(name: str, resume: Any = "never", **sections: Any) -> Run:
        return Run(config(folder, **sections), folder / "runs" / name, resume)

    held_out = {"eval_segments": "2026-01-02"}
    by_world_size = {
        2: [
            run("two"),
            run("stopped", train={"max_steps": STOPPED}),
            run("resumed", train={"max_steps": STOPPED}),
            run("resumed", "must"),
            run("two, then one", train={"max_steps": STOPPED}),
            run("one step more", train={"max_steps": STOPPED + 1}),
        ],
        1: [
            run("one"),
            run("two, then one", "must"),
            run("evaluated", train={"eval_every": STOPPED}, data=held_out),
            run("evaluated at the end", train={"max_steps": STOPPED}, data=held_out),
        ],
    }
    for world_size, runs in by_world_size.items():
        train_all(runs, world_size)
    names = {each.run_dir for runs in by_world_size.values() for each in runs}
    return {path.name: saved_tensors(path) for path in names}


def moved(before: Tensors, after: Tensors, table: str) -> torch.Tensor:
    """Rows that had another id."""
    old, new = (state[f"id_maps/{table}/ids"].flatten() for state in (before, after))
    return torch.nonzero((old != new) & (old != torch.iinfo(torch.int64).min)).flatten()


def test_resumed_equals_never_stopped_while_ids_come_and_go(trained: dict[str, Tensors]) -> None:
    assert len(moved(trained["stopped"], trained["two"], "item")) >= 3, "this stream evicts after the stop"
    assert differing(trained["two"], trained["resumed"]) == []


@pytest.mark.parametrize("run", ["one", "two, then one"])
def test_other_ranks_have_the_same_map_and_the_same_model(trained: dict[str, Tensors], run: str) -> None:
    maps = {name for name in trained["two"] if name.startswith("id_maps/")}
    assert {"id_maps/words/candidate_ids", "id_maps/user_id/counts", "id_maps/item/clock"} <= maps
    differences = differing(trained["two"], trained[run], tolerance=2e-5)
    assert differences == []
    assert not [name for name in differing(trained["two"], trained[run]) if name in maps]


def test_a_row_is_its_old_ids_until_the_step_before_and_begins_anew_with_the_new_one(
    folder: Path, trained: dict[str, Tensors]
) -> None:
    """Row-wise Adagrad's first step from state 0 moves a row by the learning rate, in the root mean square."""
    before, after = trained["stopped"], trained["one step more"]
    settings = config(folder)
    specs = table_specs(settings.schema, settings.embeddings)
    checked = 0
    for table in ("item", "user_id", "words"):
        initial = torch.empty(specs[table].rows, specs[table].width)
        fill(initial, specs[table], settings.train.seed)
        rows = moved(before, after, table)
        state = after[f"tables/{table}/momentum1"][rows, 0]
        distance = (after[f"tables/{table}/weight"] - initial)[rows].square().mean(1).sqrt()
        learnt = state > 1e-12  # an id of masked or unlabelled positions gets no gradient
        assert torch.allclose(distance[learnt], torch.tensor(specs[table].lr), rtol=1e-3)
        assert bool((distance[~learnt] < 1e-6).all())
        old = (before[f"tables/{table}/weight"] - initial)[rows].abs().amax(1)
        checked += int((learnt & (old > 1e-3)).sum())
    assert checked >= 2, "rows that were trained, evicted and trained anew"


def test_evaluation_under_way_equals_the_evaluate_verb_on_that_steps_checkpoint(
    folder: Path, trained: dict[str, Tensors]
) -> None:
    ended = "evaluated at the end"
    settings = config(folder, data={"eval_segments": "2026-01-02"})
    verb = run_evaluation(Job(settings, str(folder / "runs" / ended), LocalStop(), "must", threads=1))
    assert verb is not None
    expected = verb["evals"][0]["tasks"]
    for run in ("evaluated", ended):
        assert run in trained
        found = _eval_record(folder / "runs" / run)["tasks"]
        assert {task: expected[task] | values for task, values in found.items()} == expected


def _eval_record(run: Path) -> dict[str, Any]:
    """The first evaluation at STOPPED."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return next(line for line in lines if line["kind"] == "eval" and line["step"] == STOPPED)
