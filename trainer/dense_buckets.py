"""Dense gradients in buckets: flat buffers that backward fills, and that travel as they are or in fewer bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import nn

# Gradients are multiplied by it on a float16 wire: most would be below its smallest number otherwise. A power of two
# changes no bit of a number that is in range.
FLOAT16_SCALE = 1024.0


@dataclass
class Bucket:
    """Gradients that travel together: `flat` is one buffer, each parameter's .grad a view of it."""

    parameters: list[nn.Parameter]
    flat: torch.Tensor
    views: list[torch.Tensor]
    filled: int = 0
    sent: torch.Tensor | None = None  # what is on its way, where that is not `flat`
    work: dist.Work | None = field(default=None, repr=False)

    @property
    def is_full(self) -> bool:
        """Whether backward has been through all of its parameters."""
        return self.filled == len(self.parameters)


class Gradients:
    """All dense gradients of one step, in buckets.

    wire: the dtype that they are exchanged in. Summed there over N ranks, a mean m of gradients g is off by at most
    N · u · mean |g|, with u = 2⁻⁸ of bfloat16 and 2⁻¹¹ of float16 (to first order; float16 besides rounds to multiples
    of 2⁻³⁴).
    """

    def __init__(self, cut: Sequence[Sequence[nn.Parameter]], wire: torch.dtype) -> None:
        self.buckets = [_bucket(list(parameters)) for parameters in cut]
        self._wire = wire

    def begin(self) -> None:
        """A step's: zeros, which backward adds to. Nothing of them is on its way."""
        for bucket in self.buckets:
            bucket.filled, bucket.work = 0, None
            bucket.flat.zero_()
        self.show()

    def show(self) -> None:
        """Every .grad is a view of these."""
        for bucket in self.buckets:
            for parameter, view in zip(bucket.parameters, bucket.views, strict=True):
                parameter.grad = view

    def launch(self, bucket: Bucket, divisor: float, group: dist.ProcessGroup) -> None:
        """Sends a bucket off: Σ over ranks of `flat` / divisor."""
        sent = bucket.flat
        if self._wire == sent.dtype:
            sent.div_(divisor)
        else:
            scale = FLOAT16_SCALE if self._wire == torch.float16 else 1.0
            if bucket.sent is None:
                bucket.sent = torch.empty_like(sent, dtype=self._wire)
            sent = torch.mul(sent, scale / divisor, out=sent)
            sent = bucket.sent.copy_(sent)
        bucket.work = dist.all_reduce(sent, group=group, async_op=True)

    def wait(self) -> None:
        """Until all that was launched has arrived, in `flat`. May be called again."""
        for bucket in self.buckets:
            if bucket.work is None:
                continue
            bucket.work.wait()
            bucket.work = None
            if bucket.sent is not None:
                bucket.flat.copy_(bucket.sent)
                if self._wire == torch.float16:
                    bucket.flat.div_(FLOAT16_SCALE)

    def views(self) -> dict[nn.Parameter, torch.Tensor]:
        """{parameter: its gradient}."""
        return {
            parameter: view
            for bucket in self.buckets
            for parameter, view in zip(bucket.parameters, bucket.views, strict=True)
        }


def cut_in_buckets(parameters: Sequence[nn.Parameter], limits: tuple[float, float]) -> list[list[nn.Parameter]]:
    """In their order. limits: bytes from which the first bucket is closed, and every other."""
    cut: list[list[nn.Parameter]] = []
    waiting: list[nn.Parameter] = []
    for parameter in parameters:
        waiting.append(parameter)
        if sum(p.numel() * p.element_size() for p in waiting) >= limits[bool(cut)]:
            cut.append(waiting)
            waiting = []
    return [*cut, waiting] if waiting else cut


def _bucket(parameters: list[nn.Parameter]) -> Bucket:
    flat = torch.zeros(sum(p.numel() for p in parameters), dtype=parameters[0].dtype, device=parameters[0].device)
    parts = torch.split(flat, [p.numel() for p in parameters])
    return Bucket(parameters, flat, [part.view_as(p) for part, p in zip(parts, parameters, strict=True)])
