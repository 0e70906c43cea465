"""Entries for launcher tests: small programs in the place of training, in real processes with real process groups."""

from __future__ import annotations

import os
import time
from typing import Any

import torch
import torch.distributed as dist

from trainer.errors import RunDataError
from trainer.job import Job


def describe(job: Job) -> dict[str, Any]:
    """Each rank's view, summed over the group; rank 0 prints as training does."""
    total = torch.ones(1)
    if dist.is_initialized():
        dist.all_reduce(total)
    print(f"step 1 · rank {os.environ.get('RANK', '0')} speaks", flush=True)
    return {
        "world_size": int(os.environ.get("WORLD_SIZE", "1")),
        "sum": int(total.item()),
        "cwd": os.getcwd(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "master": "MASTER_ADDR" in os.environ,
    }


def until_stopped(job: Job) -> dict[str, Any]:
    """Steps until somebody asks to stop; both ranks leave at the same step, as the trainer's agreed flag makes them."""
    print("running", flush=True)
    for step in range(3000):
        flag = torch.tensor([int(job.stop.requested())])
        if dist.is_initialized():
            dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        if flag.item():
            print(f"checkpoint at step {step}", flush=True)
            return {"stopped_at": step}
        time.sleep(0.02)  # a step's length
    return {"stopped_at": None}


def describe_until_stopped(job: Job) -> dict[str, Any]:
    """Both in one launch."""
    return {**describe(job), **until_stopped(job)}


def bad_data_on_rank_1(job: Job) -> dict[str, Any] | None:
    """Rank 1 meets a bad label while rank 0 waits for it in a collective."""
    if os.environ.get("RANK") == "1":
        raise RunDataError(
            ["column 'click' holds 3 in a.parquet row 17 → labels are 0, 1 or null → fix the log", "a second line"]
        )
    dist.all_reduce(torch.ones(1))
    return None
