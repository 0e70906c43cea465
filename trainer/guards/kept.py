"""Batches that are worth a look, written as Parquet: which rows they were, and what the model said of each example.

spikes/step_00000412/      the step of the spike, or of the bad step
  why.json                 what was found
  step_00000410.rank_0.parquet …
"""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.batch import Batch, Int64
from trainer.checkpoint.folder import step_name
from trainer.metrics.values import CLIP
from trainer.recommender import Outputs
from trainer.run_dir import write_atomic

log = logging.getLogger(__name__)

BEFORE, AFTER = 2, 2  # steps kept beside the one in question
MOST_EXAMPLES = 1 << 18  # of a step and rank: those of the highest loss


@dataclass(frozen=True)
class Lists:
    """How a batch's examples lie in its rows. supervised_history: "" in `candidates` supervision."""

    tasks: tuple[str, ...]
    supervised_history: str

    def lengths(self, batch: Batch) -> npt.NDArray[np.int32]:
        """Examples of each row. [R]"""
        history = self.supervised_history
        return batch.history_lengths[history] if history else batch.candidate_lengths


class KeptBatches:
    """Of one rank. folder: spikes/ of the run directory. files_of: names of the files that a segment's batches count.
    most: folders in the model's life. Nothing it does can end a run: what cannot be written is said once.
    """

    def __init__(
        self, folder: Path, rank: int, lists: Lists, files_of: Callable[[int], tuple[str, ...]], most: int
    ) -> None:
        self._folder, self._rank, self._lists, self._files_of = folder, rank, lists, files_of
        self._most = most
        self._recent: deque[Outputs] = deque(maxlen=BEFORE)
        self._open: list[tuple[int, int]] = []  # (step that is kept, last of those after it)
        self.count = 0
        self._has_failed = False

    def keep(self, outputs: Outputs, why: Mapping[str, Any]) -> Path | None:
        """This step and those before it now, those after it as they come. Returns the folder, or None where there are
        `most` already."""
        if self.count >= self._most:
            return None
        self.count += 1
        step = outputs.info.step
        self._open.append((step, step + AFTER))
        for each in (*self._recent, outputs):
            self._write(step, each)
        if self._rank == 0:
            self._guarded(lambda: write_atomic(self._place(step) / "why.json", json.dumps(why, indent=2) + "\n"))
        return self._place(step)

    def after_step(self, outputs: Outputs) -> None:
        """Once a step, after `keep`."""
        step = outputs.info.step
        for kept, _ in self._open:
            if kept < step:
                self._write(kept, outputs)
        self._open = [(kept, last) for kept, last in self._open if step < last]
        if self._most:
            self._recent.append(outputs)

    def state(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"count": self.count, "open": [list(each) for each in self._open]}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """The inverse."""
        self.count = saved["count"]
        self._open = [(int(kept), int(last)) for kept, last in saved["open"]]

    def _place(self, step: int) -> Path:
        return self._folder / step_name(step)

    def _write(self, kept: int, outputs: Outputs) -> None:
        if outputs.host.filler:
            return
        name = f"{step_name(outputs.info.step)}.rank_{self._rank}.parquet"
        files = self._files_of(outputs.info.position.segment)

        def write() -> None:
            sink = pa.BufferOutputStream()
            pq.write_table(examples_of(outputs, self._lists, files, self._rank), sink)
            write_atomic(self._place(kept) / name, sink.getvalue().to_pybytes())

        self._guarded(write)

    def _guarded(self, write: Callable[[], None]) -> None:
        try:
            self._folder.mkdir(exist_ok=True)
            for kept, _ in self._open:
                self._place(kept).mkdir(exist_ok=True)
            write()
        except OSError as error:
            if not self._has_failed:
                log.warning("%s → batches that are worth a look are kept there → make room; training goes on", error)
            self._has_failed = True


def examples_of(outputs: Outputs, lists: Lists, files: tuple[str, ...], rank: int) -> pa.Table:
    """One line per example and task with a weight: step, rank, file and row (as in the data, from 0), place in the
    row's list of supervised positions, user, request, task, label, weight, prediction, loss (before the weight)."""
    host = outputs.host
    row_S, place_S = positions(lists.lengths(host))
    parts = []
    for k, task in enumerate(lists.tasks):
        label, weight, prediction = (
            of_SK[:, k].detach().float().cpu().numpy()
            for of_SK in (outputs.labels_SK, outputs.weights_SK, outputs.probabilities_SK)
        )
        p = prediction.astype(np.float64).clip(CLIP, 1 - CLIP)
        loss = -(label * np.log(p) + (1 - label) * np.log1p(-p))
        kept = np.flatnonzero(weight > 0)
        of_row = row_S[kept]
        names = pa.DictionaryArray.from_arrays(pa.array(host.file[of_row]), pa.array(files, pa.string()))
        columns = {
            "step": pa.array(np.full(len(kept), outputs.info.step)),
            "rank": pa.array(np.full(len(kept), rank, np.int32)),
            "file": names.dictionary_decode(),
            "row": pa.array(host.row[of_row]),
            "place": pa.array(place_S[kept]),
            "user": pa.array(host.user[of_row]),
            "request": pa.array(host.request[of_row]),
            "task": pa.array([task] * len(kept), pa.string()),
            "label": pa.array(label[kept]),
            "weight": pa.array(weight[kept]),
            "prediction": pa.array(prediction[kept]),
            "loss": pa.array(loss[kept]),
        }
        parts.append(pa.table(columns))
    table = pa.concat_tables(parts)
    if len(table) <= MOST_EXAMPLES:
        return table
    losses = table["loss"].to_numpy()
    losses = np.where(np.isnan(losses), np.inf, losses)
    return table.take(np.sort(np.argsort(-losses, kind="stable")[:MOST_EXAMPLES]))


def positions(lengths_R: npt.NDArray[np.int32]) -> tuple[Int64, Int64]:
    """(row, place in its list) of each supervised position. [S], [S]"""
    row_S = np.repeat(np.arange(len(lengths_R)), lengths_R)
    starts_R = np.cumsum(lengths_R, dtype=np.int64) - lengths_R
    return row_S, np.arange(len(row_S)) - starts_R[row_S]
