"""TorchRec's training pipeline with the parts of a step told apart: what it does, and when, stays as it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import nn
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.distributed.train_pipeline.pipeline_context import TrainPipelineContext
from torchrec.distributed.types import Awaitable

from trainer.assembly import Assembly
from trainer.device_batch import RequestBatch
from trainer.recommender import Outputs
from trainer.step_split import StepClock


class SplitPipeline(TrainPipelineSparseDist[RequestBatch, Outputs]):
    """Trains `assembly`'s model; each stage runs in its part of the assembly's clock.

    Within a stage others tell their own share: the feed its waits and id mapping, the dense optimizer and the gate
    their waits. Gradients of rows travel and are applied inside backward.
    """

    def __init__(self, assembly: Assembly, device: torch.device) -> None:
        super().__init__(assembly.model, assembly.optimizer, device, custom_model_fwd=self._forward)
        self._clock = assembly.clock
        time_lookup(assembly.module.tables, self._clock)

    def copy_batch_to_gpu(self, dataloader_iter: Iterator[RequestBatch]) -> tuple[Any, Any]:
        """Reads the feed as well."""
        with self._clock.part("host_to_device"):
            batch, context = super().copy_batch_to_gpu(dataloader_iter)
            return batch, context

    def start_sparse_data_dist(self, batch: RequestBatch | None, context: TrainPipelineContext) -> None:
        """Counts of ids leave for the ranks that hold their rows."""
        with self._clock.part("id_exchange"):
            super().start_sparse_data_dist(batch, context)

    def wait_sparse_data_dist(self, context: TrainPipelineContext) -> None:
        """The counts are there, the ids leave."""
        with self._clock.part("id_exchange"):
            super().wait_sparse_data_dist(context)
        requests = context.input_dist_tensors_requests
        for name, request in requests.items():
            requests[name] = _Ids(request, self._clock)

    def _wait_for_batch(self) -> None:
        with self._clock.part("host_to_device"):
            super()._wait_for_batch()

    def _forward(self, batch: RequestBatch | None) -> tuple[torch.Tensor, Outputs]:
        with self._clock.part("forward"):
            return cast("tuple[torch.Tensor, Outputs]", self._model(batch))

    def _backward(self, losses: torch.Tensor) -> None:
        with self._clock.part("backward"):
            super()._backward(losses)

    def _optimizer_step(self) -> None:
        with self._clock.part("optimizer"):
            super()._optimizer_step()


class _Ids(Awaitable[Any]):
    """Ids on their way, waited for at the start of the lookup: that wait is theirs."""

    def __init__(self, request: Awaitable[Any], clock: StepClock) -> None:
        super().__init__()
        self._request, self._clock = request, clock

    def _wait_impl(self) -> Any:
        with self._clock.part("id_exchange"):
            return self._request.wait()


def time_lookup(tables: nn.Module, clock: StepClock) -> None:
    """Every training forward of the module runs in the part `lookup`. torch.fx traces through these hooks, which touch
    no tensor."""
    entered = []  # parts that the hooks opened: the clock may be switched between two forwards

    def before(module: nn.Module, _: object) -> None:
        if module.training:
            entered.append(clock.part("lookup"))
            entered[-1].__enter__()

    def after(*_: object) -> None:
        if entered:
            entered.pop().__exit__(None, None, None)

    tables.register_forward_pre_hook(before)
    tables.register_forward_hook(after, always_call=True)
