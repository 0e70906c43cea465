"""The helper that every distributed test stands on."""

from __future__ import annotations

import time

import pytest
import torch
import torch.distributed as dist

from tests.distributed.ranks import run_ranks


def _sum_of_ranks(rank: int, world_size: int, extra: int) -> tuple[int, torch.Tensor]:
    total = torch.tensor([rank + extra])
    dist.all_reduce(total)
    return rank, total


def _one_fails_while_the_other_waits(rank: int, world_size: int) -> None:
    if rank == 1:
        raise ValueError("rank one has had enough")
    dist.barrier()


def _one_never_ends(rank: int, world_size: int) -> None:
    while rank == 1:
        time.sleep(0.1)


def test_every_rank_returns_its_own_result_of_a_real_collective() -> None:
    results = run_ranks(_sum_of_ranks, 2, 10, timeout=100)
    assert [(rank, int(total)) for rank, total in results] == [(0, 21), (1, 21)]


def test_a_ranks_traceback_is_raised_and_no_one_hangs() -> None:
    with pytest.raises(RuntimeError, match=r"rank 1:(?s:.)*rank one has had enough"):
        run_ranks(_one_fails_while_the_other_waits, 2, timeout=100)


def test_the_time_limit_kills_and_names_the_ranks_that_hang() -> None:
    with pytest.raises(TimeoutError, match=r"ranks \[.*1\] had not ended"):
        run_ranks(_one_never_ends, 2, timeout=5)
