"""Whole training runs through the public worker function, on real gloo ranks, and what they left behind."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from embeddings.config import Embeddings, Table
from model.config import Model
from tests.distributed.ranks import run_ranks
from tests.pipelines.rows import make_data, make_schema
from trainer.checkpoint import manifest
from trainer.checkpoint.reading import SavedTensors
from trainer.checkpoint.state import CheckpointState, read_state
from trainer.config import Config
from trainer.config_sections import Checkpoint, Optim, Telemetry, Train
from trainer.job import Job
from trainer.run_dir import Resume, RunDir


class Never:
    """A stop signal that is never given."""

    def requested(self) -> bool:
        return False


def tiny_config(rows: Path, **sections: Any) -> Config:
    """Every kind of column, two histories, two tasks, a vocabulary, and a row-wise and a table-wise table, in 5-row
    batches.

    sections: {"train": {"max_steps": 3}, …} over the defaults here.
    """
    tables = {
        "item": Table(rows=256, mapping="vocabulary", buckets=8),
        "words": Table(rows=97, sharding="row_wise"),
        "tags": Table(rows=50, sharding="table_wise"),
    }
    config = Config(
        schema=make_schema(),
        data=make_data(rows, segments=".."),
        embeddings=Embeddings(width=8, default_rows=64, tables=tables),
        model=Model(dim=16, num_layers=2, full_layers=1, num_heads=2, windows=(4,)),
        optim=Optim(lr=3e-3, warmup_examples=50),
        train=Train(log_every=4),
        checkpoint=Checkpoint(every_minutes=0.0),
        telemetry=Telemetry(prometheus=False, tensorboard=False),
    )
    return replace(config, **{k: getattr(config, k).model_copy(update=v) for k, v in sections.items()})


@dataclass(frozen=True)
class Run:
    """One run of several in the same processes."""

    config: Config
    run_dir: Path
    resume: Resume = "never"
    init_from: Path | None = None
    profile: bool = False


def train_runs(rank: int, world_size: int, runs: list[Run]) -> list[dict[str, Any] | None]:
    """In one of the ranks: rank 0's results."""
    from trainer.worker import run_worker

    results = []
    for run in runs:
        if rank == 0:
            RunDir(run.run_dir, run.config.checkpoint.store).prepare(run.resume)
        dist.barrier()
        parent = None if run.init_from is None else str(run.init_from)
        config = run.config
        if parent is not None:
            config = replace(config, init=config.init.model_copy(update={"run": parent}))
        job = Job(config, str(run.run_dir), Never(), run.resume, parent, profile=run.profile, threads=1)
        results.append(run_worker(job))
    return results


def train_all(runs: list[Run], world_size: int, timeout: float = 150) -> list[Any]:
    """Rank 0's results of the runs, each to its end, one after the other in one group of N processes."""
    return run_ranks(train_runs, world_size, runs, timeout=timeout)[0]


def newest_state(run_dir: Path) -> CheckpointState:
    """What the newest checkpoint holds beside its tensors."""
    path = RunDir(run_dir).require_latest()
    return read_state(path, manifest.read_commit(path))


def saved_tensors(run_dir: Path) -> dict[str, torch.Tensor]:
    """{name: whole tensor} of the newest checkpoint, shards put together."""
    path = RunDir(run_dir).latest()
    assert path is not None, f"no checkpoint in {run_dir}"
    with SavedTensors(path) as saved:
        return {name: saved.read(name) for name in saved.tensors}


def differing(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], tolerance: float = 0.0) -> list[str]:
    """Names whose values differ by more than `tolerance` (0: in any bit), and names that only one has."""
    found = sorted(a.keys() ^ b.keys())
    for name in a.keys() & b.keys():
        if a[name].shape != b[name].shape:
            found.append(f"{name}: {tuple(a[name].shape)} and {tuple(b[name].shape)}")
        elif tolerance == 0 and not torch.equal(a[name], b[name]):
            found.append(name)
        elif tolerance and not torch.allclose(a[name].double(), b[name].double(), rtol=0, atol=tolerance):
            found.append(f"{name}: {(a[name].double() - b[name].double()).abs().max():.2e}")
    return found
