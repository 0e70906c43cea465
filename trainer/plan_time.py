"""An estimate of a step's time and of what bounds it, from bytes, operations and a preset's peaks. Nothing is run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from embeddings.plan_choice import exchanges
from embeddings.plan_report import PlanReport, human_bytes
from pipelines.reading import RowCost
from pipelines.schema import Schema
from trainer.hardware import ATTAINED, Hardware
from trainer.plan_ids import Work

# CPU seconds of all reading processes per million rows, by what a row holds: docs/benchmarks/ingest.md, full run on a
# quiet machine, Ray executor: 7.3 for 24 columns and lists of 3 × 49 values, 57.8 for 500 columns.
COLUMN_SECONDS = 57.8 / 500
VALUE_SECONDS = (7.3 - 24 * COLUMN_SECONDS) / (3 * 49)


@dataclass(frozen=True)
class StepTime:
    """parts: {what: seconds a step}, each as if it ran alone. rows: request rows of a rank. reader_cores: that keep one
    rank fed at the slower end of the estimate. rows_per_core: that a reader core makes a second."""

    parts: dict[str, float]
    rows: float
    rows_per_core: float

    @property
    def least(self) -> float:
        """All parts at once: the longest one."""
        return max(self.parts.values())

    @property
    def most(self) -> float:
        """One part after the other."""
        return sum(self.parts.values())

    @property
    def bottleneck(self) -> str:
        return max(self.parts, key=lambda part: self.parts[part])

    @property
    def reader_cores(self) -> float:
        """For the faster end of the estimate: readers must not be what bounds it."""
        return self.rows / self.least / self.rows_per_core

    def to_json(self) -> dict[str, Any]:
        return {
            "seconds": {part: seconds for part, seconds in self.parts.items()},
            "step_seconds": [self.least, self.most],
            "bottleneck": self.bottleneck,
            "reader_cores_per_rank": self.reader_cores,
            "rows_per_core_second": self.rows_per_core,
        }


def estimate(
    report: PlanReport,
    work: Work,
    cost: RowCost,
    dense_parameters: int,
    hardware: Hardware,
    local_world_size: int,
    schema: Schema,
) -> StepTime:
    """Of the busiest rank. local_world_size: ranks a host."""
    rows = work.rows / report.world_size
    load, link = report.load, _link(hardware, report.size, local_world_size)
    multiplications = cost.fixed + cost.linear * work.length + cost.quadratic * work.length_squared
    moved = load.lookup + load.update
    # Lengths, ids, rows, gradients.
    calls = 4 * exchanges(report.specs, {t.name: t.sharding for t in report.tables}) if report.size > 1 else 0
    dense = 2 * (report.world_size - 1) / report.world_size * 4 * dense_parameters
    parts = {
        # Two operations a multiplication; backward is twice forward.
        "tower": rows * 6 * multiplications / (ATTAINED["flops"] * hardware.flops),
        "lookup and update": float((moved - load.uvm).max()) / (ATTAINED["memory"] * hardware.memory_bandwidth),
        "rows on the host": float(load.uvm.max()) / (ATTAINED["link"] * hardware.host_bandwidth),
        "exchange of rows": float(load.busiest.max()) / link + calls * hardware.call,
        "dense all-reduce": dense / _link(hardware, report.world_size, local_world_size),
        "averaging copies": report.sync_bytes / report.sync_steps / _between_copies(hardware, report, local_world_size),
    }
    return StepTime({part: seconds for part, seconds in parts.items() if seconds}, rows, _rows_per_core(work, schema))


def _link(hardware: Hardware, ranks: int, local_world_size: int) -> float:
    """Bytes a second that a rank exchanges with all others: what goes to other hosts takes the network."""
    if ranks <= local_world_size:
        return ATTAINED["link"] * hardware.link
    abroad = (ranks - local_world_size) / (ranks - 1)
    return ATTAINED["link"] / max(abroad / hardware.network, (1 - abroad) / hardware.link)


def _between_copies(hardware: Hardware, report: PlanReport, local_world_size: int) -> float:
    """Copies lie on ranks far apart: on other hosts, unless one host has them all."""
    alone = report.world_size <= local_world_size
    return ATTAINED["link"] * (hardware.link if alone else hardware.network)


def _rows_per_core(work: Work, schema: Schema) -> float:
    """Of a reader: a cost a column, and one a value of a list column."""
    lists = [column for column in schema.columns.values() if column.group]
    groups = len({column.group for column in lists})
    per_group = work.length / groups if groups else 0.0
    seconds = COLUMN_SECONDS * len(schema.columns) + VALUE_SECONDS * per_group * len(lists)
    return 1e6 / seconds


def lines(found: StepTime, hardware: Hardware, device_bytes: float, ranks: int) -> list[str]:
    """What the reader of a plan is told."""
    parts = " · ".join(f"{part} {_time(seconds)}" for part, seconds in found.parts.items())
    shares = ", ".join(f"{share:.0%} of {peak}" for peak, share in ATTAINED.items())
    return [
        f"step      ESTIMATE for {hardware.name}: {_time(found.least)} (all overlapped) to {_time(found.most)} "
        f"(nothing overlapped), bound by {found.bottleneck}",
        f"          {parts} · assuming {shares} peak",
        f"rows      ESTIMATE: {ranks * found.rows / found.most:,.0f} to {ranks * found.rows / found.least:,.0f} rows/s "
        f"over {ranks} rank(s), {human_bytes(device_bytes)} a rank held before activations",
        f"readers   ESTIMATE: {found.reader_cores:.2f} core(s) a rank, at {found.rows_per_core:,.0f} rows a core and "
        "second (docs/benchmarks/ingest.md, scaled to these columns and lengths)",
    ]


def _time(seconds: float) -> str:
    return f"{seconds * 1e6:.0f} µs" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"
