"""The recommender: tables and ranker joined, the one module handed to TorchRec to shard.

Its forward is three calls and no logic, because TrainPipelineSparseDist traces it with torch.fx; the logic lives in the
two leaf modules below.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from embeddings.tables import Tables
from model.embedding_dropout import EmbeddingDropout
from model.inputs import HistoryInput, RankerInput
from model.loss import Heads, probabilities, ranking_loss
from pipelines.batch import Batch
from pipelines.hashing import derive_seed
from trainer.device_batch import RequestBatch, StepInfo
from trainer.gate import GradientGate
from trainer.group_index import Key
from trainer.layout import Layout


@dataclass
class Outputs:
    """One rank's share of a step: loss (its Σ w·l ÷ the global Σ w, times world size), detached; probabilities, labels
    and the metrics' weights [S, K]; host: the arrays that were computed with, as they were read."""

    info: StepInfo
    loss: torch.Tensor
    probabilities_SK: torch.Tensor
    labels_SK: torch.Tensor
    weights_SK: torch.Tensor
    host: Batch


class Assemble(nn.Module):
    """Looked-up rows {group: [ΣU, W]} and the batch's indices → the ranker's packed input."""

    def __init__(self, layout: Layout, gate: GradientGate) -> None:
        super().__init__()
        self._layout = layout
        self._gate = gate

    def forward(self, rows: dict[str, torch.Tensor], batch: RequestBatch) -> RankerInput:
        """Fields rebuilt a group of tables at a time (trainer.group_index)."""
        rows = self._gate.through(rows)
        values: dict[Key, torch.Tensor] = {
            name: dense.unsqueeze(1) if dense.dim() == 1 else dense for name, dense in batch.dense.items()
        }
        for group, index in batch.indices.items():
            values |= index.parts(rows[group])
        blocks = {key: found for key, found in values.items() if not isinstance(key, str)}
        in_blocks = {column for block in blocks for column in block}

        def read(columns: dict[str, str]) -> dict[str, torch.Tensor]:
            return {field: values[column] for field, column in columns.items()}

        layout = self._layout
        histories = {
            name: HistoryInput(
                lengths_R=batch.history_lengths[name],
                event=read(layout.event[name]),
                action=read(layout.action[name]),
                time_E=batch.times[name],
                clock_E=batch.clocks[name],
                action_clock_E=batch.action_clocks[name],
            )
            for name in layout.event
        }
        return RankerInput(
            static=read({field: column for field, column in layout.static.items() if column not in in_blocks}),
            histories=histories,
            candidates=read(layout.candidate),
            candidate_lengths_R=batch.request["candidate_lengths"],
            time_R=batch.request["time"],
            clock_R=batch.request["clock"],
            blocks=blocks,
        )


class Scorer(nn.Module):
    """The ranker and its loss. dropout: of its input."""

    def __init__(
        self,
        ranker: nn.Module,
        heads: Heads,
        gate: GradientGate,
        seed: int,
        rank: int,
        dropout: EmbeddingDropout | None = None,
    ) -> None:
        super().__init__()
        self.ranker = ranker
        self._dropout = nn.Identity() if dropout is None else dropout
        self._heads = heads
        self._gate = gate
        self._seed = (seed, rank)

    def forward(self, inputs: RankerInput, batch: RequestBatch) -> tuple[torch.Tensor, Outputs]:
        """(loss to go backward from, what telemetry wants to know)."""
        if self.training:
            # Dropout is a function of (seed, rank, step), so that a resumed run needs no saved generator to repeat it.
            seed_generators(derive_seed(*self._seed, batch.info.step), batch.labels_SK.device)
        logits_SK = self.ranker(self._dropout(inputs))
        loss = ranking_loss(
            logits_SK, batch.labels_SK, batch.weights_SK, batch.normalizers_K, self._heads, batch.offsets_SK
        )
        self._gate.watch_loss(loss, labelled=any(batch.info.weight_sums))
        outputs = Outputs(
            info=batch.info,
            loss=loss.detach(),
            probabilities_SK=probabilities(logits_SK.detach(), self._heads),
            labels_SK=batch.labels_SK,
            weights_SK=batch.metric_weights_SK,
            host=batch.host,
        )
        return loss, outputs


def seed_generators(seed: int, device: torch.device) -> None:
    """Of the CPU and of `device`. torch.manual_seed would visit every kind of device that it knows, and where one is
    not in use write down the stack for later: .3 ms a step."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(seed)


class Recommender(nn.Module):
    """forward(RequestBatch) → (loss, Outputs)."""

    def __init__(self, tables: Tables, assemble: Assemble, scorer: Scorer) -> None:
        super().__init__()
        self.tables = tables
        self.assemble = assemble
        self.scorer = scorer

    def forward(self, batch: RequestBatch) -> tuple[torch.Tensor, Outputs]:
        """Three calls, each once: what torch.fx traces and TorchRec pipelines."""
        rows = self.tables(batch.kjts)
        inputs = self.assemble(rows, batch)
        scored: tuple[torch.Tensor, Outputs] = self.scorer(inputs, batch)
        return scored
