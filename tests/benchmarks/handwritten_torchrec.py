"""The loop that a good user of TorchRec writes by hand: the baseline of `over_handwritten_torchrec`.

DistributedModelParallel over an EmbeddingCollection by TorchRec's own planner, Adagrad fused into backward,
DistributedDataParallel for the rest with fused AdamW, TrainPipelineSparseDist. A KeyedJaggedTensor keyed by feature,
its ids as they occur. A request's history is looked up and projected once, packed; then the tower of plain_pytorch.py
runs over one padded row per candidate. No metrics, no reports, no checks. Sizes: R requests · B candidates · E events
· T longest history · W width of tables · D of the tower.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torchrec import EmbeddingCollection, EmbeddingConfig, JaggedTensor, KeyedJaggedTensor
from torchrec.distributed import DistributedModelParallel, TrainPipelineSparseDist
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.optim import Adagrad
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.streamable import Pipelineable

from tests.benchmarks.plain_pytorch import PaddedTower, Variant, list_column
from tests.benchmarks.train_rows import ACTIONS, ITEM, STATIC, Shape
from trainer.config_sections import Optim

PAST = [f"past_{name}" for name in ITEM]
VARIANTS = {"fp32": Variant(), "bf16 module, products": Variant(module=torch.bfloat16, products=True)}


@dataclass
class HandBatch(Pipelineable):
    """kjt: a sample is a request. request_B: each candidate's. offsets_R: of histories, R + 1. padding: bool [R, T]."""

    kjt: KeyedJaggedTensor
    request_B: torch.Tensor
    offsets_R: torch.Tensor
    padding_RT: torch.Tensor
    label_B: torch.Tensor

    def to(self, device: torch.device, non_blocking: bool = False) -> HandBatch:
        return HandBatch(
            self.kjt.to(device, non_blocking=non_blocking),
            self.request_B.to(device, non_blocking=non_blocking),
            self.offsets_R.to(device, non_blocking=non_blocking),
            self.padding_RT.to(device, non_blocking=non_blocking),
            self.label_B.to(device, non_blocking=non_blocking),
        )

    def record_stream(self, stream: torch.Stream) -> None:
        self.kjt.record_stream(stream)  # type: ignore[arg-type]
        for tensor in (self.request_B, self.offsets_R, self.padding_RT, self.label_B):
            tensor.record_stream(stream)

    def pin_memory(self) -> HandBatch:
        return self


def hand_batch(rows: pa.Table) -> HandBatch:
    """Request rows → what the loop is fed."""
    requests = len(rows)
    lists = {name: list_column(rows, name) for name in (*ITEM, *PAST, "past_click")}
    values = [*(rows.column(name).to_numpy() for name in STATIC), *(ids for ids, _ in lists.values())]
    lengths = [*(np.ones(requests, np.int32) for _ in STATIC), *(count.astype(np.int32) for _, count in lists.values())]
    candidates_R, events_R = lists["item"][1], lists["past_item"][1]
    return HandBatch(
        KeyedJaggedTensor(
            keys=[*STATIC, *lists],
            values=torch.from_numpy(np.concatenate(values)),
            lengths=torch.from_numpy(np.concatenate(lengths)),
        ),
        torch.from_numpy(np.repeat(np.arange(requests), candidates_R)),
        torch.from_numpy(np.concatenate([[0], np.cumsum(events_R)])),
        torch.from_numpy(np.arange(events_R.max()) >= events_R[:, None]),
        torch.from_numpy(list_column(rows, "click")[0].astype(np.float32)),
    )


class HandTower(nn.Module):
    """Looked-up rows → loss."""

    def __init__(self, shape: Shape, variant: Variant) -> None:
        super().__init__()
        self.padded = PaddedTower(shape).to(variant.module)
        self._dtype = variant.module

    def forward(self, rows: dict[str, JaggedTensor], batch: HandBatch) -> torch.Tensor:
        def values(name: str) -> torch.Tensor:
            return rows[name].values().to(self._dtype)

        fields = {name: values(name).index_select(0, batch.request_B) for name in STATIC}
        candidate_BD = self.padded.event(torch.cat([values(name) for name in ITEM], -1))
        past_ED = self.padded.event(torch.cat([values(name) for name in PAST], -1))
        past_ED = past_ED + self.padded.action(values("past_click"))
        longest = batch.padding_RT.shape[1]
        past_RTD = torch.ops.fbgemm.jagged_to_padded_dense(past_ED, [batch.offsets_R], [longest])
        padding_BT = batch.padding_RT.index_select(0, batch.request_B)
        logits_B = self.padded(fields, candidate_BD, past_RTD.index_select(0, batch.request_B), padding_BT)
        return F.binary_cross_entropy_with_logits(logits_B, batch.label_B)


class HandModel(nn.Module):
    """forward(batch) → (loss, loss detached)."""

    def __init__(self, shape: Shape, variant: Variant) -> None:
        super().__init__()
        sizes = {**STATIC, **ITEM, "click": ACTIONS}
        features = {name: [name] for name in STATIC}
        features |= {name: [name, f"past_{name}"] for name in ITEM} | {"click": ["past_click"]}
        self.tables = EmbeddingCollection(
            tables=[
                EmbeddingConfig(
                    name=f"{name}_table", num_embeddings=ids, embedding_dim=shape.width, feature_names=features[name]
                )
                for name, ids in sizes.items()
            ],
            device=torch.device("meta"),
        )
        self.tower = HandTower(shape, variant)

    def forward(self, batch: HandBatch) -> tuple[torch.Tensor, torch.Tensor]:
        rows = self.tables(batch.kjt)
        loss: torch.Tensor = self.tower(rows, batch)
        return loss, loss.detach()


class ClippedAdamW(torch.optim.AdamW):
    """Clips, then steps."""

    def __init__(self, parameters: list[nn.Parameter], optim: Optim) -> None:
        super().__init__(
            parameters, lr=optim.lr, betas=optim.betas, eps=optim.eps, weight_decay=optim.weight_decay, fused=True
        )
        self._clipped, self._clip_norm = parameters, optim.clip_norm

    def step(self, closure: Any = None) -> Any:
        nn.utils.clip_grad_norm_(self._clipped, self._clip_norm)
        return super().step(closure)


class HandLoop:
    """step(): one step over the next of the batches. Collective."""

    def __init__(
        self, shape: Shape, variant: Variant, optim: Optim, table_lr: float, batches: Iterator[HandBatch]
    ) -> None:
        logging.getLogger("torchrec").setLevel(logging.ERROR)  # advice about its planner
        warnings.filterwarnings("ignore", category=FutureWarning, module="torchrec")
        torch.manual_seed(1)
        device, group = torch.device("cpu"), dist.group.WORLD
        assert group is not None
        model = HandModel(shape, variant)
        apply_optimizer_in_backward(Adagrad, model.tables.parameters(), {"lr": table_lr})
        sharder: Any = EmbeddingCollectionSharder()
        topology = Topology(world_size=group.size(), compute_device="cpu", local_world_size=group.size())
        plan = EmbeddingShardingPlanner(topology=topology).collective_plan(model, [sharder], group)
        sharded = DistributedModelParallel(model, device=device, plan=plan, sharders=[sharder])
        dense = [p for name, p in sharded.named_parameters() if ".tables." not in name and p.requires_grad]
        self._pipeline = TrainPipelineSparseDist(sharded, ClippedAdamW(dense, optim), device)
        self._products = variant.products
        self._batches = batches

    def step(self) -> torch.Tensor:
        """The loss."""
        attention: AbstractContextManager[object] = sdpa_kernel(SDPBackend.MATH) if self._products else nullcontext()
        with attention:
            loss: torch.Tensor = self._pipeline.progress(self._batches)
        return loss
