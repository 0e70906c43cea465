"""What ranks tell each other at log time: sums over all of them, and who takes longest for its own part of a step."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch
import torch.distributed as dist

from trainer.runtime import Runtime
from trainer.telemetry.records import Slowest

# Parts of a step in which a rank waits for no other one. Backward is left out, although most of it is its own: the
# exchange of rows' gradients is in it. What is slow in forward is so in backward.
OWN_PARTS = ("data_wait", "host_to_device", "forward", "optimizer")


@dataclass(frozen=True)
class OfRanks:
    """sums: in the order in which they were given. median_seconds: of the ranks' own seconds."""

    sums: tuple[float, ...]
    slowest: Slowest
    median_seconds: float


class RankSums:
    """hosts: by rank, once they have met."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.hosts: tuple[str, ...] = (socket.gethostname(),)

    def meet(self) -> None:
        """Collective: once, before the first exchange."""
        if self._runtime.world_size > 1:
            hosts = [""] * self._runtime.world_size
            dist.all_gather_object(hosts, self.hosts[0], group=self._runtime.control)
            self.hosts = tuple(hosts)

    def exchange(self, own: Sequence[float], own_seconds: float) -> OfRanks:
        """Collective. own: this rank's terms of the sums. Added up in rank order: the same bits on every rank."""
        mine = torch.tensor([*own, own_seconds], dtype=torch.float64)
        parts = [mine]
        if self._runtime.world_size > 1:
            parts = [torch.empty_like(mine) for _ in range(self._runtime.world_size)]
            dist.all_gather(parts, mine, group=self._runtime.control)
        gathered = torch.stack(parts)
        seconds = gathered[:, -1].tolist()
        rank = max(range(len(seconds)), key=seconds.__getitem__)
        return OfRanks(
            tuple(gathered[:, :-1].sum(0).tolist()), Slowest(rank, self.hosts[rank], seconds[rank]), median(seconds)
        )


def own_seconds(split: Mapping[str, float]) -> float:
    """Of a step, what this rank spends without waiting for others."""
    return sum(split[part] for part in OWN_PARTS)
