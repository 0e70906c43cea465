"""TensorBoard curves over steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainer.metrics.values import TaskValues
from trainer.telemetry.records import EvalRecord, TrainRecord, finite
from trainer.telemetry.system import FIGURES
from trainer.telemetry.tables import highest

CURVES = (
    "loss",
    "examples_per_second",
    "rows_per_second",
    "flops_per_second",
    "mfu",
    "tokens_per_second",
    "step_seconds",
    "data_wait_seconds",
    "grad_norm",
    "weight_norm",
    "learning_rate",
    "bad_steps",
    "epoch_progress",
    "ready_windows",
    "data_lag_seconds",
    "price_per_billion_examples",
    "loss_spikes",
)
FLUSH_SECONDS = 10  # whoever looks while a run trains sees what the terminal shows
Points = dict[str, float | None]
TABLE_CURVES = ("hottest_share", "unknown_rate", "collision_rate", "fill", "row_norm_max")


class TensorBoard:
    """Event files under `path`, made at the first point. Tags: train/loss, train/TASK/ne, eval/SPLIT/TASK/gauc …,
    step/PART: its seconds, tables/highest_FIGURE: over all tables, fleet/…: goodput, lost seconds by cause, the slowest
    rank's and the median rank's own seconds of a step, and system/…: bytes.

    Points that an earlier process wrote for steps that are trained again are hidden (TensorBoard's purge_step).
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: Any = None

    def train(self, record: TrainRecord) -> None:
        """One point per curve."""
        points = {f"train/{name}": getattr(record, name) for name in CURVES}
        points |= {f"step/{part}": seconds for part, seconds in record.step_split.items()}
        for task, values in record.tasks.items():
            points |= _of_task(f"train/{task}", values)
        points |= _of_fleet(record)
        for figure in TABLE_CURVES:
            for value in highest(record.tables, figure, 1).values():
                points[f"tables/highest_{figure}"] = value
        self._write(points, record.step)

    def eval(self, record: EvalRecord) -> None:
        """One point per curve of that split."""
        points: Points = {}
        for task, values in record.tasks.items():
            points |= _of_task(f"eval/{record.split}/{task}", values)
            if task in record.gauc:
                points[f"eval/{record.split}/{task}/gauc"] = record.gauc[task].value
        for kind, spectra in record.collapse.spectra.items() if record.collapse is not None else ():
            for layer, spectrum in enumerate(spectra):
                points[f"collapse/effective_rank/{kind}/{layer}"] = spectrum.effective_rank
        self._write(points, record.step)

    def rewind(self, step: int) -> None:
        """After a resume at `step`: what came later is hidden."""
        self._writer = _writer(self._path, step + 1)

    def close(self) -> None:
        """Everything is on disk."""
        if self._writer is not None:
            self._writer.close()

    def _write(self, points: Points, step: int) -> None:
        """All of them as one record of the file: one by one they would cost ten times as much."""
        from tensorboard.compat.proto.summary_pb2 import Summary  # noqa: PLC0415

        known = {tag: found for tag, value in points.items() if (found := finite(value)) is not None}
        if not known:
            return
        if self._writer is None:
            self._writer = _writer(self._path, step)
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in known.items()])
        self._writer.file_writer.add_summary(summary, step)


def _of_fleet(record: TrainRecord) -> Points:
    points: Points = {}
    if record.goodput is not None:
        points["fleet/goodput"] = record.goodput.share
        points |= {f"fleet/lost_seconds/{cause}": seconds for cause, seconds in record.goodput.lost_seconds.items()}
    if record.slowest is not None:
        points["fleet/slowest_rank_step_seconds"] = record.slowest.seconds
        points["fleet/median_rank_step_seconds"] = record.median_rank_seconds
    if record.system is not None:
        points |= {f"system/{name}": getattr(record.system, name) for name in FIGURES}
    return points


def _of_task(prefix: str, values: TaskValues) -> Points:
    return {f"{prefix}/{name}": getattr(values, name) for name in ("ne", "auc", "calibration", "loss")}


def _writer(path: Path, purge_step: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - a second of imports, for rank 0 alone

    return SummaryWriter(log_dir=str(path), purge_step=purge_step, flush_secs=FLUSH_SECONDS)
