"""Operations of the steps since the last report, counted from their batches' lengths (trainer/flops.py)."""

from __future__ import annotations

import numpy as np

from model.config import Model
from model.inputs import InputSpec
from pipelines.batch import Batch
from trainer.flops import FORWARD_AND_BACKWARD, Counts, Rows, num_fields, ranker_work


class StepWork:
    """Of this rank. `add` keeps a step's lengths, a few numbers a row; `take` counts them, all steps in one go.

    tokens: of the steps last taken: fields, events and candidates of their rows.
    """

    def __init__(self, spec: InputSpec, config: Model) -> None:
        self._spec, self._config = spec, config
        self._histories: dict[str, list[Counts]] = {history.name: [] for history in spec.histories}
        self._candidates: list[Counts] = []
        self._fields = num_fields(spec, config)
        self.tokens = 0.0

    def add(self, batch: Batch) -> None:
        """A step on this batch."""
        for name, kept in self._histories.items():
            kept.append(batch.history_lengths[name].astype(np.float64))
        supervises = self._spec.supervision == "candidates"
        candidates = batch.candidate_lengths if supervises else np.zeros(len(batch.candidate_lengths))
        self._candidates.append(candidates.astype(np.float64))

    def take(self) -> float:
        """Floating-point operations of forward and backward since the last call."""
        self.tokens = 0.0
        if not self._candidates:
            return 0.0
        rows = Rows(
            {name: np.concatenate(kept) for name, kept in self._histories.items()}, np.concatenate(self._candidates)
        )
        per_row = sum(rows.histories.values(), rows.candidates)
        self.tokens = float(per_row.sum()) + self._fields * len(rows.candidates)
        self._candidates = []
        self._histories = {name: [] for name in self._histories}
        return FORWARD_AND_BACKWARD * ranker_work(self._spec, self._config, rows).flops
