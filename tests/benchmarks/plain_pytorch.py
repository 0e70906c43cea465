"""The version a PyTorch user would write: one padded row per candidate, nn.Embedding, nn.TransformerEncoder, DDP.

The baseline of the benchmarks, in the fastest plain forms found; VARIANTS are printed side by side. Each candidate is a
sequence [fields, candidate, history …], the history padded to the batch's longest; the candidate's output is scored.
Sizes: B candidates of a batch · M fields · T longest history · D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel

from tests.benchmarks.train_rows import ACTIONS, ITEM, STATIC, Shape
from trainer.config_sections import Optim

Padded = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Variant:
    """sparse: gradients of the tables. module: dtype of the tower. autocast: bf16 where torch thinks it right.
    products: attention as two matrix products instead of the fused kernel."""

    sparse: bool = True
    module: torch.dtype = torch.float32
    autocast: bool = False
    products: bool = False


VARIANTS = {
    "fp32": Variant(),
    "fp32, products": Variant(products=True),
    "fp32, dense grads": Variant(sparse=False),
    "bf16 autocast": Variant(autocast=True),
    "bf16 module": Variant(module=torch.bfloat16),
    "bf16 module, products": Variant(module=torch.bfloat16, products=True),
    "bf16 module, products, dense grads": Variant(sparse=False, module=torch.bfloat16, products=True),
}


class PaddedTower(nn.Module):
    """forward(fields {name: [B, W]}, candidate [B, D], past [B, T, D], padding bool [B, T]) → logits [B]. Candidate and
    past are `event`s, the past with its actions added."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.fields = nn.ModuleList(nn.Linear(shape.width, shape.dim) for _ in STATIC)
        self.event = nn.Linear(shape.width * len(ITEM), shape.dim)
        self.action = nn.Linear(shape.width, shape.dim)
        self.place = nn.Parameter(torch.zeros(len(STATIC) + 1 + shape.longest, shape.dim))
        layer = nn.TransformerEncoderLayer(
            shape.dim, shape.heads, shape.ffn, dropout=0.0, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, shape.layers, nn.LayerNorm(shape.dim), enable_nested_tensor=False)
        self.head = nn.Linear(shape.dim, 1)

    def forward(
        self,
        fields: dict[str, torch.Tensor],
        candidate_BD: torch.Tensor,
        past_BTD: torch.Tensor,
        padding_BT: torch.Tensor,
    ) -> torch.Tensor:
        fields_BMD = torch.stack(
            [layer(fields[name]) for name, layer in zip(STATIC, self.fields, strict=True)] + [candidate_BD], dim=1
        )
        x_BLD = torch.cat([fields_BMD, past_BTD], dim=1)
        x_BLD = x_BLD + self.place[: x_BLD.shape[1]]
        padding_BL = F.pad(padding_BT, (len(STATIC) + 1, 0), value=False)
        out_BLD = self.encoder(x_BLD, src_key_padding_mask=padding_BL)
        logits_B: torch.Tensor = self.head(out_BLD[:, len(STATIC)]).squeeze(-1).float()
        return logits_B


class PlainRanker(nn.Module):
    """forward(padded batch) → logits [B]."""

    def __init__(self, shape: Shape, variant: Variant) -> None:
        super().__init__()
        self._dtype = variant.module
        sizes = {**STATIC, **ITEM, "click": ACTIONS}
        self.tables = nn.ModuleDict(
            {name: nn.Embedding(ids, shape.width, sparse=variant.sparse) for name, ids in sizes.items()}
        )
        self.tower = PaddedTower(shape).to(variant.module)

    def forward(self, batch: Padded) -> torch.Tensor:
        fields = {name: self._rows(name, batch[name]) for name in STATIC}
        candidate_BD = self.tower.event(torch.cat([self._rows(name, batch[name]) for name in ITEM], -1))
        past_BTD = self.tower.event(torch.cat([self._rows(name, batch[f"past_{name}"]) for name in ITEM], -1))
        past_BTD = past_BTD + self.tower.action(self._rows("click", batch["past_click"]))
        logits_B: torch.Tensor = self.tower(fields, candidate_BD, past_BTD, batch["padding"])
        return logits_B

    def _rows(self, table: str, ids: torch.Tensor) -> torch.Tensor:
        rows: torch.Tensor = self.tables[table](ids)
        return rows.to(self._dtype)


class PlainTrainer:
    """step(padded batch): forward, backward, clip, both optimizers. Collective under DDP."""

    def __init__(self, shape: Shape, variant: Variant, optim: Optim, table_lr: float, world_size: int) -> None:
        torch.manual_seed(1)
        torch.sparse.check_sparse_tensor_invariants.disable()  # type: ignore[no-untyped-call]  # the default, said aloud: no warning
        ranker = PlainRanker(shape, variant)
        tables = list(ranker.tables.parameters())
        self._dense = [p for n, p in ranker.named_parameters() if not n.startswith("tables.")]
        self._optimizers = [
            torch.optim.Adagrad(tables, lr=table_lr),
            torch.optim.AdamW(
                self._dense, lr=optim.lr, betas=optim.betas, eps=optim.eps, weight_decay=optim.weight_decay, fused=True
            ),
        ]
        self._clip_norm = optim.clip_norm
        self._model = DistributedDataParallel(ranker) if world_size > 1 else ranker
        self._precision: Callable[[], AbstractContextManager[object]] = (
            partial(torch.autocast, "cpu", torch.bfloat16) if variant.autocast else nullcontext
        )
        self._attention: Callable[[], AbstractContextManager[object]] = (
            partial(sdpa_kernel, SDPBackend.MATH) if variant.products else nullcontext
        )

    def step(self, batch: Padded) -> float:
        """The loss."""
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)
        with self._attention():
            with self._precision():
                logits_B = self._model(batch)
            loss = F.binary_cross_entropy_with_logits(logits_B, batch["label"])
            loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._dense, self._clip_norm)
        for optimizer in self._optimizers:
            optimizer.step()
        return loss.item()


def pad_rows(rows: pa.Table) -> Padded:
    """Request rows → one padded row per candidate: static and candidate ids [B], history ids and padding [B, T]."""
    lengths_R = list_column(rows, "past_item")[1]
    candidates_R = list_column(rows, "item")[1]
    kept_RT = np.arange(lengths_R.max()) < lengths_R[:, None]
    batch = {name: torch.from_numpy(np.repeat(rows.column(name).to_numpy(), candidates_R)) for name in STATIC}
    batch |= {name: torch.from_numpy(list_column(rows, name)[0].copy()) for name in ITEM}
    for name in (*(f"past_{item}" for item in ITEM), "past_click"):
        padded_RT = np.zeros(kept_RT.shape, np.int64)
        padded_RT[kept_RT] = list_column(rows, name)[0]
        batch[name] = torch.from_numpy(np.repeat(padded_RT, candidates_R, axis=0))
    batch["padding"] = torch.from_numpy(np.repeat(~kept_RT, candidates_R, axis=0))
    batch["label"] = torch.from_numpy(list_column(rows, "click")[0].astype(np.float32))
    return batch


def list_column(rows: pa.Table, column: str) -> tuple[np.ndarray, np.ndarray]:
    """(values, lengths)."""
    array = rows.column(column).combine_chunks()
    return array.flatten().to_numpy(), np.asarray(array.value_lengths())


def read_batches(path: Path, rows_a_batch: int, rank: int, world_size: int) -> Iterator[Padded]:
    """Endless batches from Parquet, one read ahead in a thread as ours are, in file order; ranks take row groups in
    turn."""
    with ThreadPoolExecutor(1) as pool:
        made = _batches(path, rows_a_batch, rank, world_size)
        ahead = pool.submit(next, made)
        while True:
            batch = ahead.result()
            ahead = pool.submit(next, made)
            yield batch


def _batches(path: Path, rows_a_batch: int, rank: int, world_size: int) -> Iterator[Padded]:
    while True:
        with pq.ParquetFile(path) as file:
            assert file.num_row_groups >= world_size, "each rank reads row groups of its own"
            assert file.metadata.row_group(0).num_rows >= rows_a_batch, "a batch lies in one row group"
            for group in range(rank, file.num_row_groups, world_size):
                rows = file.read_row_group(group, use_threads=False)
                for begin in range(0, len(rows) - rows_a_batch + 1, rows_a_batch):
                    yield pad_rows(rows.slice(begin, rows_a_batch))
