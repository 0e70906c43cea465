"""What a step asks of the tables and of the tower: counted from real batches where the data exist, else assumed."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from embeddings.plan_load import ASSUMED_CANDIDATES, StepIds, assumed_ids
from embeddings.specs import TableSpec
from pipelines.batch import Batch
from pipelines.carry import carry_window
from pipelines.errors import DataError
from pipelines.reading import RowCost
from pipelines.schema import Schema
from pipelines.segments import find_segments
from pipelines.windows import Pass, Window
from trainer.config import Config

BATCHES = 4  # global batches that are read
RANKS = 8  # whose shares of them are counted


@dataclass(frozen=True)
class Work:
    """ids: see StepIds. rows: of a global batch. length, length_squared: mean list positions of a row, and of their
    square."""

    ids: StepIds
    rows: float
    length: float
    length_squared: float


def find_work(config: Config, specs: dict[str, TableSpec], world_size: int, cost: RowCost) -> Work:
    """Measured on the first segment; where there are no data, or they cannot be read, assumed, and that is said."""
    if _is_absent(config.data.rows):
        return _assumed(config, specs, world_size, f"there are no rows at {config.data.rows}")
    try:
        return _measured(config, specs, world_size, cost)
    except DataError as error:
        return _assumed(config, specs, world_size, str(error).splitlines()[0].split(" → ")[0])


def _is_absent(rows: str) -> bool:
    return not re.search(r"[*?\[]|://", rows) and not Path(rows).exists()


def _assumed(config: Config, specs: dict[str, TableSpec], world_size: int, why: str) -> Work:
    schema = config.schema
    length = sum(history.max_length / 2 for history in schema.histories.values())
    if schema.supervision == "candidates":
        length += ASSUMED_CANDIDATES
    ids = assumed_ids(schema, specs, config.data.global_batch, world_size)
    ids = StepIds(ids.asked, ids.distinct, f"{ids.source}: {why}")
    return Work(ids, float(config.data.global_batch), length, length**2)


def _measured(config: Config, specs: dict[str, TableSpec], world_size: int, cost: RowCost) -> Work:
    """The first window of the run, of BATCHES global batches, dealt to `world_size` ranks as training would."""
    data = config.data.model_copy(update={"window_batches": min(BATCHES, config.data.window_batches)})
    segment = find_segments(data).train[0]
    with tempfile.TemporaryDirectory() as aside:
        quarantine = aside if data.on_bad_row == "quarantine" else ""
        pass_ = Pass(config.schema, data, (segment,), config.train.seed, quarantine=quarantine, cost=cost)
        window = next(pass_.windows_from(), None)
        if window is None:
            raise DataError(f"segment {segment.name} has no rows")
        whole = carry_window(window, pass_.reading, 1, [0])[0]
        ranks = sorted({round(place) for place in np.linspace(0, world_size - 1, min(RANKS, world_size))})
        dealt = {0: whole} if world_size == 1 else carry_window(window, pass_.reading, world_size, ranks)
    shares = [batch for of_rank in dealt.values() for batch in of_rank]
    lengths = np.concatenate([_lengths(batch, config.schema) for batch in whole])
    return Work(
        ids=StepIds(
            _mean_ids(shares, specs), _mean_ids(whole, specs), _told(window, segment.name, shares, ranks), True
        ),
        rows=window.rows / window.batches,
        length=float(lengths.mean()),
        length_squared=float((lengths**2).mean()),
    )


def _told(window: Window, segment: str, shares: list[Batch], ranks: list[int]) -> str:
    fillers = sum(batch.filler for batch in shares)
    idle = f" ({fillers} of {len(shares)} shares without a row)" if fillers else ""
    return (
        f"unique ids: measured on {window.batches} global batch(es), {window.rows:,} rows, of segment {segment}, as "
        f"dealt to {len(ranks)} rank(s){idle}"
    )


def _mean_ids(batches: list[Batch], specs: dict[str, TableSpec]) -> dict[str, float]:
    """Several ids may share a row, but never are there more rows than the table has."""
    return {
        name: min(float(np.mean([len(batch.tables[name].ids) for batch in batches])), float(spec.rows))
        for name, spec in specs.items()
    }


def _lengths(batch: Batch, schema: Schema) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """List positions of each row, as `pipelines.carry.row_costs` counts them. [R]"""
    total = np.zeros(batch.rows)
    for lengths in batch.history_lengths.values():
        total += lengths
    return total + batch.candidate_lengths if schema.supervision == "candidates" else total
