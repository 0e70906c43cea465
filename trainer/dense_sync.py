"""Dense gradients over ranks: bucketed all-reduces launched from gradient hooks, in three named phases.

launch: a bucket is sent as soon as backward has filled it · overlap: backward goes on · wait: before the optimizer
reads them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed.model_parallel import DataParallelWrapper, DistributedModelParallel
from torchrec.distributed.types import ShardingEnv


@dataclass
class Bucket:
    """Gradients that travel together: `flat` is one buffer, each parameter's .grad a view of it."""

    parameters: list[nn.Parameter]
    flat: torch.Tensor
    views: list[torch.Tensor]
    filled: int = 0
    work: dist.Work | None = field(default=None, repr=False)


class DenseSync(DataParallelWrapper):
    """Mode `sync` behind TorchRec's seam for dense parallelism (instead of DistributedDataParallel).

    group: a process group of its own, so that the next step's id exchange does not queue behind it.
    bucket_mb, first_bucket_mb: the first one is small, so that the exchange starts early in backward.
    """

    def __init__(self, group: dist.ProcessGroup, bucket_mb: float, first_bucket_mb: float) -> None:
        self._group = group
        self._world_size = dist.get_world_size(group)
        self._limits = (first_bucket_mb * 2**20, bucket_mb * 2**20)
        self._buckets: list[Bucket] = []
        self._next = 0  # buckets leave in one order on every rank, whatever order gradients arrive in
        self.parameters: dict[str, nn.Parameter] = {}

    def wrap(self, dmp: DistributedModelParallel, env: ShardingEnv, device: torch.device) -> None:
        """Called by DistributedModelParallel once the tables are sharded: what is left is dense."""
        sharded = set(DistributedModelParallel._sharded_parameter_names(dmp._dmp_wrapped_module))
        self.attach(
            {n: p for n, p in dmp._dmp_wrapped_module.named_parameters() if n not in sharded and p.requires_grad}
        )

    def attach(self, parameters: dict[str, nn.Parameter]) -> None:
        """Every rank starts from rank 0's values; buckets follow the order in which backward fills them, the reverse of
        definition."""
        self.parameters = parameters
        if self._world_size > 1:
            for parameter in parameters.values():
                dist.broadcast(parameter.data, group_src=0, group=self._group)
        waiting: list[nn.Parameter] = []
        for parameter in reversed(list(parameters.values())):
            waiting.append(parameter)
            if sum(p.numel() * p.element_size() for p in waiting) >= self._limits[bool(self._buckets)]:
                self._add_bucket(waiting)
                waiting = []
        if waiting:
            self._add_bucket(waiting)

    def _add_bucket(self, parameters: list[nn.Parameter]) -> None:
        flat = torch.zeros(sum(p.numel() for p in parameters), dtype=parameters[0].dtype, device=parameters[0].device)
        views = [
            v.view_as(p) for v, p in zip(torch.split(flat, [p.numel() for p in parameters]), parameters, strict=True)
        ]
        bucket = Bucket(parameters, flat, views)
        self._buckets.append(bucket)
        for parameter, view in zip(parameters, views, strict=True):
            parameter.grad = view
            parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                lambda _, b=bucket: self._filled(b)
            )

    def _filled(self, bucket: Bucket) -> None:
        bucket.filled += 1
        while self._next < len(self._buckets) and self._is_full(self._buckets[self._next]):
            self._launch(self._buckets[self._next])

    @staticmethod
    def _is_full(bucket: Bucket) -> bool:
        return bucket.filled == len(bucket.parameters)

    def _launch(self, bucket: Bucket) -> None:
        self._next += 1
        if self._world_size > 1:
            bucket.flat.div_(self._world_size)
            bucket.work = dist.all_reduce(bucket.flat, group=self._group, async_op=True)

    def wait(self) -> None:
        """Afterwards every .grad is the mean over ranks. Parameters that had no gradient in this step count as zero."""
        for bucket in self._buckets[self._next :]:
            self._launch(bucket)
        for bucket in self._buckets:
            if bucket.work is not None:
                bucket.work.wait()

    def zero_grad(self) -> None:
        """Start of a step."""
        self._next = 0
        for bucket in self._buckets:
            bucket.filled, bucket.work = 0, None
            bucket.flat.zero_()
            for parameter, view in zip(bucket.parameters, bucket.views, strict=True):
                parameter.grad = view
