"""Dropout of what is looked up, before any ranker sees it: item and field embeddings overfit long before the tower."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from model.inputs import FieldSpec, InputSpec, RankerInput


class EmbeddingDropout(nn.Module):
    """Sets each number of the embeddings to zero with `probability`, and scales the rest up, in training only. Dense
    fields and vectors pass as they are. Every occurrence of an id is thinned on its own."""

    def __init__(self, spec: InputSpec, probability: float) -> None:
        super().__init__()
        self.probability = probability
        self._static, self._event, self._action = (
            _embedded(fields) for fields in (spec.static, spec.event, spec.action)
        )

    def forward(self, inputs: RankerInput) -> RankerInput:
        """The same object where nothing is to drop."""
        if not self.training or not self.probability:
            return inputs
        histories = {
            name: replace(
                history,
                event=self._dropped(history.event, self._event),
                action=self._dropped(history.action, self._action),
            )
            for name, history in inputs.histories.items()
        }
        return replace(
            inputs,
            static=self._dropped(inputs.static, self._static),
            # A block holds embeddings alone, or dense values alone.
            blocks={
                names: F.dropout(value, self.probability) if self._static.issuperset(names) else value
                for names, value in inputs.blocks.items()
            },
            histories=histories,
            candidates=self._dropped(inputs.candidates, self._event),
        )

    def _dropped(self, values: dict[str, torch.Tensor], embedded: frozenset[str]) -> dict[str, torch.Tensor]:
        return {
            name: F.dropout(value, self.probability) if name in embedded else value for name, value in values.items()
        }


def _embedded(fields: Iterable[FieldSpec]) -> frozenset[str]:
    return frozenset(field.name for field in fields if not field.dense)
