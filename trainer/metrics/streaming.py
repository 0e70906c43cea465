"""NE, AUC and calibration of a stream in bounded memory, over all ranks.

Everything is a sum, in one flat tensor over (scope, task, statistic), so that one all-reduce at log time gives every
metric of the whole batch stream, and a saved sum is a saved metric. Take predictions before the update they lead to:
progressive validation.

Sums are integers: each position adds a whole number and a fraction in units of 2^-FRACTION, so that the same addends
give the same bits in whatever order they come, and however often the run was interrupted between them.

AUC comes from a histogram of the log-odds with BINS bins between ±SPAN. Pairs in different bins are ranked exactly,
pairs in one bin count half, so |AUC − exact| ≤ ½ Σ_b P_b·N_b ÷ (P·N) (P_b, N_b: weight of positives and negatives in
bin b); the bound is reported beside the value. Shape suffixes: S supervised positions · K tasks · B bins.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from trainer.metrics import values
from trainer.metrics.values import TaskValues

BINS = 4096
SPAN = 12.0  # log-odds of p = 6e-6: rarer predictions share the outermost bins
FRACTION = 40  # bits: a prediction of 1e-6 is right to a millionth
MOST_WEIGHT = 2.0**40  # of one position: more counts as this
CARRY_AT = 1 << 22  # positions whose fractions fit into an int64 beside each other
SUMS = 6  # Σ w, Σ w·ll, Σ w·y, Σ w·p, examples, non-finite predictions
Scope = Literal["lifetime", "segment", "window"]
SCOPES: tuple[Scope, ...] = ("lifetime", "segment", "window")


class TaskMetrics:
    """Sums of this rank since the model's birth (lifetime), the segment's first batch, and the last log (window)."""

    def __init__(self, tasks: Sequence[str], device: torch.device | str = "cpu") -> None:
        self.tasks = tuple(tasks)
        shape = (2, len(SCOPES), len(self.tasks), SUMS + 2 * BINS)
        self._sums = torch.zeros(shape, dtype=torch.int64, device=device)  # [whole numbers, fractions]
        self._positions = 0  # since the last carry

    def update(self, probabilities_SK: torch.Tensor, labels_SK: torch.Tensor, weights_SK: torch.Tensor) -> Addends:
        """Adds one batch of this rank; returns what it added. Weight 0 (null label, filler) counts nowhere; a NaN or
        infinite prediction only as such."""
        found = addends(probabilities_SK, labels_SK, weights_SK)
        self._carry_before(len(found.w_SK))
        self._sums[:, :, :, :SUMS] += split(found.sums_6SK).sum(2).transpose(1, 2).unsqueeze(1)
        self._sums[:, :, :, SUMS:] += histogram(found).unsqueeze(1)
        return found

    def reset(self, scope: Scope) -> None:
        """Begins a new window (after a log) or segment (after its last batch); on every rank alike."""
        self._sums[:, SCOPES.index(scope)] = 0

    def reduced(self, group: dist.ProcessGroup | None = None) -> GlobalMetrics:
        """Collective: the sums of all ranks. This rank's own stay as they are."""
        total = carried(self._sums.clone()).cpu()  # control groups are gloo ones
        if dist.is_initialized() and dist.get_world_size(group) > 1:
            dist.all_reduce(total, group=group)
        return GlobalMetrics(self.tasks, carried(total).numpy())

    def load(self, state: dict[str, Any], rank: int) -> None:
        """GlobalMetrics.state() of any world size: rank 0 goes on from it, the others from zero. A task that is not
        in it starts anew."""
        self._sums.zero_()
        if rank != 0 or state.get("bins") != BINS:
            return
        saved_tasks = list(state["tasks"])
        content = zlib.decompress(base64.b64decode(state["sums"]))
        if state.get("fraction_bits") is None:  # of 0.1.0: floating-point sums
            floats = np.frombuffer(content, dtype="<f8").reshape(len(SCOPES), len(saved_tasks), SUMS + 2 * BINS)
            saved = split(torch.from_numpy(floats.copy()))
        else:
            integers = np.frombuffer(content, dtype="<i8").reshape(2, len(SCOPES), len(saved_tasks), SUMS + 2 * BINS)
            saved = torch.from_numpy(integers.copy())
        for k, task in enumerate(self.tasks):
            if task in saved_tasks:
                self._sums[:, :, k] = saved[:, :, saved_tasks.index(task)]

    def _carry_before(self, positions: int) -> None:
        self._positions += positions
        if self._positions > CARRY_AT:
            carried(self._sums)
            self._positions = positions


class GlobalMetrics:
    """Sums over all ranks, at one moment. integers: int64 [2, scopes, tasks, statistics], carried."""

    def __init__(self, tasks: tuple[str, ...], integers: npt.NDArray[np.int64]) -> None:
        self.tasks = tasks
        self._integers = integers

    @property
    def sums(self) -> npt.NDArray[np.float64]:
        """[scopes, tasks, statistics]."""
        result: npt.NDArray[np.float64] = self._integers[0] + self._integers[1] * 2.0**-FRACTION
        return result

    def values(self, scope: Scope) -> dict[str, TaskValues]:
        """{task: its metrics} over that scope."""
        sums = self.sums[SCOPES.index(scope)]
        return {task: values_of(of_task) for task, of_task in zip(self.tasks, sums, strict=True)}

    def state(self) -> dict[str, Any]:
        """Plain JSON, exact to the bit: what a checkpoint keeps."""
        content = base64.b64encode(zlib.compress(self._integers.astype("<i8").tobytes())).decode("ascii")
        return {"tasks": list(self.tasks), "bins": BINS, "fraction_bits": FRACTION, "sums": content}


@dataclass(frozen=True)
class Addends:
    """Of one batch. sums_6SK: what each position adds to the SUMS; y_SK, w_SK: its label and weight, 0 where it does
    not count; logits_SK: log-odds of its prediction."""

    sums_6SK: torch.Tensor
    logits_SK: torch.Tensor
    y_SK: torch.Tensor
    w_SK: torch.Tensor


def addends(probabilities_SK: torch.Tensor, labels_SK: torch.Tensor, weights_SK: torch.Tensor) -> Addends:
    """See TaskMetrics.update."""
    p_SK = probabilities_SK.detach().double()
    finite_SK = torch.isfinite(p_SK)
    seen_SK = weights_SK > 0
    w_SK = torch.where(finite_SK & seen_SK, weights_SK, 0).double().clamp(max=MOST_WEIGHT)
    y_SK = torch.where(seen_SK, labels_SK, 0).double()
    p_SK = torch.where(finite_SK, p_SK, 0.5)
    clipped_SK = p_SK.clamp(values.CLIP, 1 - values.CLIP)
    log_p_SK, log_q_SK = clipped_SK.log(), torch.log1p(-clipped_SK)
    sums_6SK = torch.stack(
        [
            w_SK,
            -(w_SK * (y_SK * log_p_SK + (1 - y_SK) * log_q_SK)),
            w_SK * y_SK,
            w_SK * p_SK,
            (w_SK > 0).double(),
            (seen_SK & ~finite_SK).double(),
        ]
    )
    return Addends(sums_6SK, log_p_SK - log_q_SK, y_SK, w_SK)


def split(values: torch.Tensor) -> torch.Tensor:
    """Whole numbers and fractions, one above the other: int64 [2, …]."""
    whole = values.floor()
    return torch.stack([whole.long(), ((values - whole) * 2.0**FRACTION).round().long()])


def carried(sums: torch.Tensor) -> torch.Tensor:
    """In place: fractions below one."""
    sums[0] += sums[1] >> FRACTION
    sums[1] &= (1 << FRACTION) - 1
    return sums


def columns(found: Addends, bins: int) -> torch.Tensor:
    """Of each position its place in a histogram of negatives, then positives, of so many bins each. [S, K]"""
    bin_SK = ((found.logits_SK + SPAN) * (bins / (2 * SPAN))).floor().clamp(0, bins - 1).long()
    return bin_SK + bins * (found.y_SK > 0.5).long()


def histogram(found: Addends) -> torch.Tensor:
    """Weight per task, class (negatives first) and bin, split: int64 [2, K, 2·BINS]."""
    tasks = found.logits_SK.shape[1]
    slot_SK = columns(found, BINS) + 2 * BINS * torch.arange(tasks, device=found.logits_SK.device)
    flat = torch.zeros((2, tasks * 2 * BINS), dtype=torch.int64, device=slot_SK.device)
    return flat.index_add_(1, slot_SK.reshape(-1), split(found.w_SK).flatten(1)).view(2, tasks, 2 * BINS)


def values_of(sums: npt.NDArray[np.float64]) -> TaskValues:
    """The metrics of one task's [SUMS + 2·bins], for any number of bins."""
    bins = (len(sums) - SUMS) // 2
    weight, loss, label, prediction, examples, nonfinite = (float(value) for value in sums[:SUMS])
    auc, error = _auc(sums[SUMS : SUMS + bins], sums[SUMS + bins :])
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
