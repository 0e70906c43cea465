"""NE, AUC and calibration of a stream in bounded memory, over all ranks.

Everything is a sum, in one flat float64 tensor over (scope, task, statistic), so that one all-reduce at log time
gives every metric of the whole batch stream, and a saved sum is a saved metric. Take predictions before the update
they lead to: progressive validation.

AUC comes from a histogram of the log-odds with BINS bins between ±SPAN. Pairs in different bins are ranked exactly,
pairs in one bin count half, so |AUC − exact| ≤ ½ Σ_b P_b·N_b ÷ (P·N) (P_b, N_b: weight of positives and negatives in
bin b); the bound is reported beside the value. Shape suffixes: S supervised positions · K tasks · B bins.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from trainer.metrics import values
from trainer.metrics.values import TaskValues

BINS = 4096
SPAN = 12.0  # log-odds of p = 6e-6: rarer predictions share the outermost bins
SUMS = 6  # Σ w, Σ w·ll, Σ w·y, Σ w·p, examples, non-finite predictions
Scope = Literal["lifetime", "segment", "window"]
SCOPES: tuple[Scope, ...] = ("lifetime", "segment", "window")


class TaskMetrics:
    """Sums of this rank since the model's birth (lifetime), the segment's first batch, and the last log (window)."""

    def __init__(self, tasks: Sequence[str], device: torch.device | str = "cpu") -> None:
        self.tasks = tuple(tasks)
        shape = (len(SCOPES), len(self.tasks), SUMS + 2 * BINS)
        self._sums = torch.zeros(shape, dtype=torch.float64, device=device)

    def update(self, probabilities_SK: torch.Tensor, labels_SK: torch.Tensor, weights_SK: torch.Tensor) -> None:
        """Adds one batch of this rank. Weight 0 (null label, filler) counts nowhere; a NaN or infinite prediction
        only as such."""
        p_SK = probabilities_SK.detach().double()
        finite_SK = torch.isfinite(p_SK)
        seen_SK = weights_SK > 0
        w_SK = torch.where(finite_SK & seen_SK, weights_SK, 0).double()
        y_SK = torch.where(seen_SK, labels_SK, 0).double()
        p_SK = torch.where(finite_SK, p_SK, 0.5)
        clipped_SK = p_SK.clamp(values.CLIP, 1 - values.CLIP)
        log_p_SK, log_q_SK = clipped_SK.log(), torch.log1p(-clipped_SK)
        sums_6K = torch.stack(
            [
                w_SK.sum(0),
                -(w_SK * (y_SK * log_p_SK + (1 - y_SK) * log_q_SK)).sum(0),
                (w_SK * y_SK).sum(0),
                (w_SK * p_SK).sum(0),
                (w_SK > 0).sum(0).double(),
                (seen_SK & ~finite_SK).sum(0).double(),
            ]
        )
        self._sums[:, :, :SUMS] += sums_6K.T
        self._sums[:, :, SUMS:] += _histogram(log_p_SK - log_q_SK, y_SK, w_SK)

    def reset(self, scope: Scope) -> None:
        """Begins a new window (after a log) or segment (after its last batch); on every rank alike."""
        self._sums[SCOPES.index(scope)] = 0

    def reduced(self, group: dist.ProcessGroup | None = None) -> GlobalMetrics:
        """Collective: the sums of all ranks. This rank's own stay as they are."""
        total = self._sums.clone()
        if dist.is_initialized() and dist.get_world_size(group) > 1:
            dist.all_reduce(total, group=group)
        return GlobalMetrics(self.tasks, total.cpu().numpy())

    def load(self, state: dict[str, Any], rank: int) -> None:
        """GlobalMetrics.state() of any world size: rank 0 goes on from it, the others from zero. A task that is not
        in it starts anew."""
        self._sums.zero_()
        if rank != 0 or state.get("bins") != BINS:
            return
        content = zlib.decompress(base64.b64decode(state["sums"]))
        saved_tasks = list(state["tasks"])
        saved = np.frombuffer(content, dtype="<f8").reshape(len(SCOPES), len(saved_tasks), SUMS + 2 * BINS)
        for k, task in enumerate(self.tasks):
            if task in saved_tasks:
                self._sums[:, k] = torch.from_numpy(saved[:, saved_tasks.index(task)].copy())


class GlobalMetrics:
    """Sums over all ranks, at one moment."""

    def __init__(self, tasks: tuple[str, ...], sums: npt.NDArray[np.float64]) -> None:
        self.tasks = tasks
        self._sums = sums

    def values(self, scope: Scope) -> dict[str, TaskValues]:
        """{task: its metrics} over that scope."""
        return {
            task: _values(of_task) for task, of_task in zip(self.tasks, self._sums[SCOPES.index(scope)], strict=True)
        }

    def state(self) -> dict[str, Any]:
        """Plain JSON, exact to the bit: what a checkpoint keeps."""
        content = zlib.compress(self._sums.astype("<f8").tobytes())
        return {"tasks": list(self.tasks), "bins": BINS, "sums": base64.b64encode(content).decode("ascii")}


def _histogram(logits_SK: torch.Tensor, y_SK: torch.Tensor, w_SK: torch.Tensor) -> torch.Tensor:
    """Weight per task, class (negatives first) and bin: [K, 2·BINS]."""
    tasks = logits_SK.shape[1]
    bin_SK = ((logits_SK + SPAN) * (BINS / (2 * SPAN))).floor().clamp(0, BINS - 1).long()
    column_SK = bin_SK + BINS * (y_SK > 0.5).long()
    slot_SK = column_SK + 2 * BINS * torch.arange(tasks, device=logits_SK.device)
    flat = torch.zeros(tasks * 2 * BINS, dtype=torch.float64, device=logits_SK.device)
    return flat.index_add_(0, slot_SK.reshape(-1), w_SK.reshape(-1)).view(tasks, 2 * BINS)


def _values(sums: npt.NDArray[np.float64]) -> TaskValues:
    weight, loss, label, prediction, examples, nonfinite = (float(value) for value in sums[:SUMS])
    auc, error = _auc(sums[SUMS : SUMS + BINS], sums[SUMS + BINS :])
    return TaskValues(
        examples=round(examples),
        weight=weight,
        loss=loss / weight if weight > 0 else None,
        base_rate=label / weight if weight > 0 else None,
        ne=values.normalized_entropy(loss, label, weight),
        auc=auc,
        calibration=values.calibration(prediction, label),
        auc_error=error,
        nonfinite=round(nonfinite),
    )


def _auc(negatives_B: npt.NDArray[np.float64], positives_B: npt.NDArray[np.float64]) -> tuple[float | None, float]:
    """(AUC, bound of its error); (None, 0) without both classes."""
    pairs = float(negatives_B.sum() * positives_B.sum())
    if pairs <= 0:
        return None, 0.0
    below_B = np.cumsum(negatives_B) - negatives_B
    tied = 0.5 * float(positives_B @ negatives_B)
    return (float(positives_B @ below_B) + tied) / pairs, tied / pairs
