"""How far a run is: global batches still to come, and the share of the epoch that is done."""

from __future__ import annotations

from pipelines.windows import Pass
from trainer.train_state import TrainState


class Progress:
    """Rank 0's, as far as is known: reads no footer that the plan has not read (see `Pass.batches_after`).

    max_steps: since the model's birth; 0 = to the end of the data.
    """

    def __init__(self, pass_: Pass, max_steps: int) -> None:
        self._pass, self._max_steps = pass_, max_steps
        self._left = self._of_epoch = 0

    def look(self, state: TrainState) -> None:
        """Before the first step, and where more of the footers may be known: `state` is done."""
        self._left = self._pass.batches_after(state.position)
        self._of_epoch = self._pass.batches_after(None) // self._pass.epochs

    def stepped(self) -> None:
        """One more batch is done."""
        self._left = max(0, self._left - 1)

    def batches_left(self, state: TrainState) -> int:
        """After `state`, to the end of the data or max_steps."""
        return max(0, min(self._left, self._max_steps - state.step)) if self._max_steps else self._left

    def of_epoch(self, state: TrainState) -> float | None:
        """Share of the state's epoch that is done."""
        if not self._of_epoch or state.position is None:
            return None
        later_epochs = self._pass.epochs - 1 - state.position.epoch
        left = self._left - later_epochs * self._of_epoch
        return min(1.0, max(0.0, 1.0 - left / self._of_epoch))
