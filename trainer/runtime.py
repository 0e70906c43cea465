"""What this process is in the run: rank, device, backend, threads, process groups; each choice with its
reason."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist

from embeddings.plan import make_groups
from trainer import leaving, machine
from trainer.beats import Beats
from trainer.errors import ConfigError

CHECKPOINT_TIMEOUT = timedelta(hours=1)


@dataclass(frozen=True)
class Runtime:
    """tables: the group of id and row exchange: all ranks, or with replicas > 1 those that share one copy of the
    tables. copies: the ranks that hold the same shards of their copies (None = there is one copy). dense: gradients'.
    gate: the bad-step flag's. control: host-side agreements (always gloo). checkpoint: of those who write checkpoints
    beside the training (always gloo). beats: told where the training is.

    Separate groups, so that no exchange queues behind another kind of it.
    """

    rank: int
    world_size: int
    local_world_size: int
    device: torch.device
    backend: str
    threads: int
    tables: dist.ProcessGroup
    dense: dist.ProcessGroup
    gate: dist.ProcessGroup
    control: dist.ProcessGroup
    checkpoint: dist.ProcessGroup
    copies: dist.ProcessGroup | None = None
    reasons: tuple[str, ...] = field(default=())
    beats: Beats = field(default_factory=Beats)

    @property
    def is_first_copy(self) -> bool:
        """Whether this rank is in the group whose tables are saved."""
        return self.rank < dist.get_world_size(self.tables)

    @property
    def is_first(self) -> bool:
        """Rank 0 writes files and speaks."""
        return self.rank == 0


def _choose_device(local_rank: int) -> tuple[torch.device, str, str]:
    if torch.cuda.is_available():
        if local_rank >= torch.cuda.device_count():
            raise ConfigError(
                f"local rank {local_rank} on a host with {torch.cuda.device_count()} GPUs → one worker per GPU "
                "→ lower --launch.workers"
            )
        return torch.device("cuda", local_rank), "nccl", "a GPU is visible to torch"
    return torch.device("cpu"), "gloo", "no GPU is visible to torch"


def _quieten_libraries() -> None:
    """TorchRec's own use of torch 2.13 raises warnings that a user of ours can do nothing about."""
    warnings.filterwarnings("ignore", message="Please use DTensor instead", category=FutureWarning)
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)


def _table_groups(
    replicas: int, backend: str, timeout: timedelta
) -> tuple[dist.ProcessGroup, dist.ProcessGroup | None]:
    """(ranks that share this rank's copy of the tables, ranks that hold the same shards of the other copies)."""
    world = dist.group.WORLD
    assert world is not None
    groups = make_groups(replicas, dist.get_world_size())
    if replicas == 1:
        return world, None
    ranks = [list(range(first, first + groups.size)) for first in range(0, groups.size * replicas, groups.size)]
    mine: list[dist.ProcessGroup] = []
    for cut in (ranks, [list(peers) for peers in zip(*ranks, strict=True)]):
        own, _ = dist.new_subgroups_by_enumeration(cut, timeout=timeout, backend=backend)  # type: ignore[no-untyped-call]
        assert own is not None
        mine.append(own)
    return mine[0], mine[1]


@contextmanager
def start(timeout_seconds: float, threads: int, replicas: int = 1) -> Iterator[Runtime]:
    """Joins the process groups (RANK, WORLD_SIZE and MASTER_* from the environment; alone without them) and leaves them
    at the end.

    threads: of this process on CPU; 0 leaves torch's choice. replicas: groups of ranks that each hold all tables.
    Raises PlanError where the ranks cannot be cut into so many.
    """
    _quieten_libraries()
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device, backend, why = _choose_device(local_rank)
    timeout = timedelta(seconds=timeout_seconds)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        # cuBLAS repeats itself only with a fixed workspace; bit-for-bit resume is promised on CPU, so this stays the
        # user's choice.
    else:
        torch.use_deterministic_algorithms(True)
        # Else every torch.empty is first filled with NaN, which shows who reads it too early, and costs a pass over it.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        machine.keep_freed_memory()
        if threads:
            torch.set_num_threads(threads)
    started_here = not dist.is_initialized()
    if started_here:
        leaving.joined_a_group()
        if world_size == 1:
            alone = dist.HashStore()  # type: ignore[attr-defined]
            dist.init_process_group(backend, store=alone, rank=0, world_size=1, timeout=timeout)
        else:
            dist.init_process_group(backend, timeout=timeout)
    try:
        tables, copies = _table_groups(replicas, backend, timeout)
        control = dist.new_group(backend="gloo", timeout=timeout)
        yield Runtime(
            rank=dist.get_rank(),
            world_size=dist.get_world_size(),
            local_world_size=int(os.environ.get("LOCAL_WORLD_SIZE", str(world_size))),
            device=device,
            backend=backend,
            threads=torch.get_num_threads(),
            tables=tables,
            copies=copies,
            dense=dist.new_group(backend=backend, timeout=timeout),
            gate=dist.new_group(backend=backend, timeout=timeout),
            control=control,
            # Ranks meet here when their files are written, which a slow store may make much later on one than another.
            checkpoint=dist.new_group(backend="gloo", timeout=max(timeout, CHECKPOINT_TIMEOUT)),
            reasons=(
                f"device {device.type}, backend {backend}: {why}",
                *(("deterministic algorithms: resuming repeats to the bit",) if device.type == "cpu" else ()),
            ),
        )
        if started_here:
            # Leave together: nobody is met by a closed connection where only this end of its last exchange is over.
            with suppress(RuntimeError):  # a peer that has failed says why itself
                dist.barrier(group=control)
    finally:
        if started_here:
            dist.destroy_process_group()
