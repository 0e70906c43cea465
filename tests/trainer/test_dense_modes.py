"""Modes of dense synchronisation, through the public trainer: each is what it says, on any number of ranks, and
nothing that happens beside the steps changes them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.ranks import run_ranks
from tests.pipelines.rows import make_rows, write_rows, write_segments
from tests.trainer.dense_references import Rule, train_as_written, train_with_ddp
from tests.trainer.runs import Run, differing, newest_state, saved_tensors, tiny_config, train_all
from trainer.run_dir import RunDir

Tensors = dict[str, torch.Tensor]
DELAYED = {"dense_sync": "delayed", "delayed_after_steps": 2}
IN_FLIGHT = "dense_in_flight/"
OF_DELAYED = frozenset(range(3, 99))  # steps


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight steps over two days, the last one with a filler; and the same with a step, the fifth, that must be
    skipped."""
    folder = tmp_path_factory.mktemp("modes")
    write_segments(folder / "rows", {"2026-01-01": [14, 9], "2026-01-02": [11, 1]})
    shutil.copytree(folder / "rows" / "dt=2026-01-02", folder / "bad" / "dt=2026-01-02")
    for part in range(5):
        rows = make_rows(5, seed=part)
        if part == 4:
            rows[2]["score"] = 3e38
        write_rows(folder / "bad" / "dt=2026-01-01" / f"part-{part}.parquet", rows)
    return folder


@pytest.fixture(scope="module")
def trained(folder: Path) -> dict[str, Tensors]:
    """{run: what its last checkpoint holds}."""

    def run(name: str, resume: Any = "never", rows: str = "rows", **sections: Any) -> Run:
        return Run(tiny_config(folder / rows, **sections), folder / "runs" / name, resume)

    often = {"every_steps": 1, "full_every": 4, "keep": 9}
    halved = {"accumulate": 2}
    evaluated = {"eval_every": 2}
    by_world_size = {
        2: [
            run("sync"),
            run("delayed", train=DELAYED),
            run("stopped", train=DELAYED | {"max_steps": 5}),
            run("stopped", "must", train=DELAYED),
            run("moved", train=DELAYED | {"max_steps": 4}),
            run("watched", train=DELAYED | evaluated, data={"eval_segments": "2026-01-02"}, checkpoint=often),
            run("watched by no one", train=DELAYED, data={"eval_segments": "2026-01-02"}),
            run("back to sync", train=DELAYED | {"max_steps": 5}),
            run("back to sync", "must"),
            run("from sync on", train={"max_steps": 2}),
            run("from sync on", "must", train=DELAYED),
            run("bad, delayed", rows="bad", train=DELAYED),
            run("accumulated", train=halved),
            run("accumulated, saved often", train=halved | {"max_steps": 4}, checkpoint=often),
            run("accumulated, saved often", "must", train=halved, checkpoint=often),
            run("accumulated by three", train={"accumulate": 3}),
            run("accumulated, delayed", train=DELAYED | halved),
            run("bad, accumulated", rows="bad", train={"accumulate": 5}),
            run("bfloat16", train={"dense_wire": "bfloat16"}),
            run("float16, delayed", train=DELAYED | {"dense_wire": "float16"}),
        ],
        1: [
            run("delayed, alone", train=DELAYED),
            run("moved", "must", train=DELAYED | {"max_steps": 6}),
            run("begun", train=DELAYED | {"max_steps": 5}, data={"segments": "2026-01-01"}),
            Run(
                tiny_config(folder / "rows", train=DELAYED, data={"segments": "2026-01-02"}),
                folder / "runs" / "begun with another's",
                init_from=folder / "runs" / "begun",
            ),
            run("begun", "must", train=DELAYED),
        ],
        3: [run("delayed by three ranks", train=DELAYED), run("moved", "must", train=DELAYED)],
    }
    for world_size, runs in by_world_size.items():
        train_all(runs, world_size)
    by_rule = [
        (run("delayed, as written"), Rule(OF_DELAYED)),
        (run("back to sync, as written"), Rule(frozenset({3, 4, 5}))),
        (run("bad, delayed, as written", rows="bad"), Rule(OF_DELAYED)),
        (run("accumulated, as written"), Rule(accumulate=2)),
        (run("accumulated by three, as written"), Rule(accumulate=3)),
        (run("accumulated, delayed, as written"), Rule(OF_DELAYED, accumulate=2)),
        (run("bad, accumulated, as written", rows="bad"), Rule(accumulate=5)),
    ]
    run_ranks(train_as_written, 1, by_rule)
    return {path.name: saved_tensors(path) for path in (folder / "runs").iterdir()}


def weights(tensors: Tensors) -> Tensors:
    """Without what is in flight, which the references keep to themselves."""
    return {name: value for name, value in tensors.items() if not name.startswith(IN_FLIGHT)}


@pytest.mark.parametrize(
    "name",
    [
        "delayed",
        "back to sync",
        "bad, delayed",
        "accumulated",
        "accumulated by three",
        "accumulated, delayed",
        "bad, accumulated",
    ],
)
def test_each_mode_is_its_recurrence(trained: dict[str, Tensors], name: str) -> None:
    """Tables updated at once, dense parameters by the gradients of the step before, of several steps, or none."""
    assert differing(weights(trained[name]), trained[f"{name}, as written"], tolerance=2e-5) == []
    assert differing(weights(trained[name]), trained["sync"], tolerance=2e-5) != []


def test_alone_it_is_the_recurrence_to_the_bit(trained: dict[str, Tensors]) -> None:
    assert differing(weights(trained["delayed, alone"]), trained["delayed, as written"]) == []


def test_any_number_of_ranks_trains_alike(trained: dict[str, Tensors]) -> None:
    for name in ("delayed, alone", "delayed by three ranks"):
        assert differing(trained["delayed"], trained[name], tolerance=2e-5) == []


def test_what_is_in_flight_is_saved_not_finished(trained: dict[str, Tensors]) -> None:
    """Resumed to the bit on as many ranks, and on others."""
    assert any(name.startswith(IN_FLIGHT) and value.any() for name, value in trained["delayed"].items())
    assert differing(trained["delayed"], trained["stopped"]) == []
    assert differing(trained["delayed"], trained["moved"], tolerance=2e-5) == []


def test_evaluations_and_checkpoints_leave_the_trajectory_alone(trained: dict[str, Tensors]) -> None:
    assert differing(trained["watched"], trained["watched by no one"]) == []


def test_the_mode_may_change_on_resume(trained: dict[str, Tensors]) -> None:
    assert differing(trained["delayed"], trained["from sync on"]) == []
    assert not any(name.startswith(IN_FLIGHT) for name in trained["back to sync"])


def test_another_run_begins_with_what_was_in_flight(trained: dict[str, Tensors]) -> None:
    assert differing(trained["begun"], trained["begun with another's"]) == []


def test_a_window_is_never_cut_by_a_checkpoint(trained: dict[str, Tensors], folder: Path) -> None:
    assert differing(trained["accumulated"], trained["accumulated, saved often"]) == []
    saved = [found.step for found in RunDir(folder / "runs" / "accumulated, saved often").step_dirs()]
    assert saved == [2, 4, 6, 8]


def test_a_bad_batch_is_left_out_of_its_window(trained: dict[str, Tensors], folder: Path) -> None:
    assert newest_state(folder / "runs" / "bad, accumulated").bad_steps == 1
    assert all(value.isfinite().all() for value in trained["bad, accumulated"].values())


def test_fewer_bits_on_the_wire_change_little_and_something(trained: dict[str, Tensors]) -> None:
    for name, exact in (("bfloat16", "sync"), ("float16, delayed", "delayed")):
        assert differing(trained[name], trained[exact], tolerance=2e-5) != []
        dense = {n: v for n, v in trained[name].items() if n.startswith("dense/")}
        for parameter, value in dense.items():
            torch.testing.assert_close(value, trained[exact][parameter], rtol=0.02, atol=0.02)


@pytest.mark.parametrize("world_size", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_sync_is_ddp_over_fifty_steps(tmp_path: Path, world_size: int) -> None:
    """To the bit where the order of two summands is all there is; within float tolerance where a ring sums in another
    order."""
    write_segments(tmp_path / "rows", {"2026-01-01": [120, 7, 123]})
    ours, ddp = (Run(tiny_config(tmp_path / "rows"), tmp_path / "runs" / name) for name in ("ours", "ddp"))
    run_ranks(train_with_ddp, world_size, [ours], [ddp])
    assert newest_state(ours.run_dir).step == 50
    tolerance = 0.0 if world_size < 3 else 1e-4
    assert differing(saved_tensors(ours.run_dir), saved_tensors(ddp.run_dir), tolerance) == []
