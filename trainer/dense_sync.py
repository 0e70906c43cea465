"""Dense gradients over ranks: bucketed all-reduces launched from gradient hooks, in three named phases.

launch: a bucket is sent as soon as backward has filled it · overlap: backward goes on, and in `delayed` the whole next
step · wait: before the optimizer reads them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed.model_parallel import DataParallelWrapper, DistributedModelParallel
from torchrec.distributed.types import ShardingEnv

from trainer.dense_buckets import Bucket, Gradients, cut_in_buckets


@dataclass(frozen=True)
class Update:
    """Gradients that a dense step will be taken on, perhaps still on their way. examples: since the model's birth, when
    they were computed: the learning rate's."""

    gradients: Gradients
    examples: int


class DenseSync(DataParallelWrapper):
    """Behind TorchRec's seam for dense parallelism (instead of DistributedDataParallel).

    group: a process group of its own, so that the next step's id exchange does not queue behind it.
    bucket_mb, first_bucket_mb: the first one is small, so that the exchange starts early in backward.
    wire: the dtype that gradients travel in; alone they do not travel.
    accumulate: batches to an update, which is the mean of their gradients; bad ones are left out.
    in_flight: mode `delayed`: what the next dense step will be taken on.
    launches_in_backward: as soon as a bucket is filled; else all at the end of backward, so that the gate looks at
    gradients that nobody is adding to, and a bad batch sends nothing.
    """

    def __init__(
        self,
        group: dist.ProcessGroup,
        bucket_mb: float,
        first_bucket_mb: float,
        wire: torch.dtype = torch.float32,
        accumulate: int = 1,
    ) -> None:
        self._group = group
        self._world_size = dist.get_world_size(group)
        self._limits = (first_bucket_mb * 2**20, bucket_mb * 2**20)
        self._wire, self._accumulate = wire, accumulate
        self._next = 0  # buckets leave in one order on every rank, whatever order gradients arrive in
        self._batches = 0  # of the window so far
        self._kept = 0  # of these, added up in _sums
        self._sums: list[torch.Tensor] = []
        self._spare: Gradients | None = None
        self.in_flight: Update | None = None
        self.launches_in_backward = True
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
        self._cut = cut_in_buckets(list(reversed(list(parameters.values()))), self._limits)
        self._filling = self._make()
        for number, bucket in enumerate(self._filling.buckets):
            for parameter in bucket.parameters:
                parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                    lambda _, n=number: self._filled(n)
                )
        if self._accumulate > 1:
            self._sums = [torch.zeros_like(bucket.flat) for bucket in self._filling.buckets]

    @property
    def buckets(self) -> list[int]:
        """Bytes of each."""
        return [bucket.flat.nbytes for bucket in self._filling.buckets]

    @property
    def is_alone(self) -> bool:
        """Whether there is no other rank to exchange with."""
        return self._world_size == 1

    def flat_gradients(self) -> list[torch.Tensor]:
        """Of the batch under way, a bucket in one: two tensors to look at instead of fifty."""
        return [bucket.flat for bucket in self._filling.buckets]

    def zero_grad(self) -> None:
        """Start of a batch."""
        self._next = 0
        self._filling.begin()

    @property
    def ends_window(self) -> bool:
        """Whether an update follows on the batch under way."""
        return self._batches + 1 == self._accumulate

    @property
    def between_windows(self) -> bool:
        """Whether no batch waits for its update."""
        return self._batches == 0

    def keep(self, good: bool) -> None:
        """End of a batch that no update follows on."""
        self._batches += 1
        if good:
            self._kept += 1
            for total, bucket in zip(self._sums, self._filling.buckets, strict=True):
                total.add_(bucket.flat)

    def send(self, good: bool, examples: int) -> Update | None:
        """End of a window: all of its gradients are on their way, or here. None where no batch of it was good: there is
        nothing to learn from."""
        if good or self.launches_in_backward:
            self._launch_rest()
        update = Update(self._filling, examples) if good or self._kept else None
        if not good:
            self._filling.wait()  # what the hooks have sent is of no use
            if self._kept:
                self._resend()
        self._end_window()
        return update

    def flush(self, examples: int) -> Update | None:
        """The end of a run ends its window too. Collective."""
        if not self._kept:
            self._end_window()
            return None
        self.zero_grad()
        self._resend()
        self._end_window()
        return Update(self._filling, examples)

    def swap(self, update: Update | None) -> Update | None:
        """Mode `delayed`: this one goes on travelling; returns the one before, which has had a whole step to arrive."""
        due, self.in_flight = self.in_flight, update
        if update is not None:
            self._filling = (self._spare or self._make()) if due is None else due.gradients
            self._spare = None
        elif due is not None:
            self._spare = due.gradients
        return due

    def wait(self) -> None:
        """Afterwards every .grad is the mean over ranks. Parameters that had no gradient in this step count as zero."""
        self._launch_rest()
        self._filling.wait()

    def hold(self, examples: int) -> None:
        """Before a checkpoint is loaded: memory for what was in flight in it, which `in_flight_tensors` hands out."""
        self.in_flight = Update(self._spare or self._make(), examples)
        self._spare = None

    def in_flight_tensors(self) -> dict[str, torch.Tensor]:
        """{parameter's name: its gradient}, the mean over ranks; waits for it."""
        if self.in_flight is None:
            return {}
        self.in_flight.gradients.wait()
        views = self.in_flight.gradients.views()
        return {name: views[parameter] for name, parameter in self.parameters.items()}

    def _make(self) -> Gradients:
        return Gradients(self._cut, self._wire)

    def _filled(self, number: int) -> None:
        """Called by autograd with each parameter."""
        self._filling.buckets[number].filled += 1
        if not self.ends_window or not self.launches_in_backward:
            return
        while self._next < len(self._cut) and self._filling.buckets[self._next].is_full:
            self._launch(self._filling.buckets[self._next])

    def _launch_rest(self) -> None:
        for bucket in self._filling.buckets[self._next :]:
            self._launch(bucket)

    def _launch(self, bucket: Bucket) -> None:
        """The batch under way is taken to be good: nobody knows yet."""
        if self._kept:
            bucket.flat.add_(self._sums[self._next])
        self._next += 1
        self._exchange(bucket, self._kept + 1)

    def _resend(self) -> None:
        """The window without its last batch."""
        for total, bucket in zip(self._sums, self._filling.buckets, strict=True):
            bucket.flat.copy_(total)
            self._exchange(bucket, self._kept)

    def _exchange(self, bucket: Bucket, batches: int) -> None:
        if self._world_size > 1:
            self._filling.launch(bucket, self._world_size * batches, self._group)
        elif batches > 1:
            bucket.flat.div_(batches)

    def _end_window(self) -> None:
        self._batches = self._kept = 0
        for total in self._sums:
            total.zero_()
