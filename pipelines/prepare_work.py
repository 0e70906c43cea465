"""What the tasks of one `data prepare` share, and the places of what they leave for each other.

    cells       the hash space of users in equal ranges: what the shuffle deals to. How many: by size and memory.
    partitions  the same in fewer ranges: a file of a segment each. How many: fixed when the output is born.

A partition is a whole number of cells, so that neither memory nor cores change a byte of the output.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from pipelines.prepare_job import Job, Unit

EVENT_BYTES = 200  # of positions, times and orders that rows are made with, beside the columns themselves
COPIES = 3  # of the columns: as read, in order, and what a row group takes


@dataclass(frozen=True)
class Work:
    """Picklable. job.partitions is the number of cells here; job.shuffle the folder where events wait.

    inputs: of each reading task: units of the log and files of saved tails, in the order of the log.
    share: bytes that a task may hold. tasks: that run at a time.
    partitions: files a segment. per_group: cells a group where the shuffle has two passes, else 0.
    after: the last segment (a day since 1970) whose events are known from saved tails only; None = all are read.
    as_of: microseconds; what labels are known by then. windows: {label column: microseconds until it is final}.
    write: segments (days) to be written, and all from `write_from` on. states: days after which users' tails are saved.
    target: folder of the segments.
    """

    job: Job
    inputs: tuple[tuple[Unit | str, ...], ...]
    share: int
    tasks: int
    partitions: int = 1
    per_group: int = 0
    after: int | None = None
    as_of: int = 0
    windows: dict[str, int] = field(default_factory=dict)
    write: frozenset[int] = frozenset()
    write_from: int | None = -(2**62)
    states: tuple[int, ...] = ()
    target: str = ""

    @property
    def cells(self) -> int:
        return self.job.partitions

    @property
    def limit(self) -> int:
        """Bytes that the events of one slice may cost, positions included; the rest is for rows being written."""
        return self.share * 6 // 10

    def writes(self, code: int) -> bool:
        """Whether a segment is to be written."""
        return code in self.write or (self.write_from is not None and code >= self.write_from)

    def cells_of(self, partition: int) -> range:
        """The cells of a partition."""
        per = self.cells // self.partitions
        return range(partition * per, (partition + 1) * per)


def cost(rows: int, size: int) -> int:
    """Bytes that it takes to make request rows of this many events of `size` bytes in all."""
    return COPIES * size + EVENT_BYTES * rows


def table_cost(table: pa.Table) -> int:
    """The same, of a table at hand."""
    return cost(table.num_rows, table.nbytes)


def save_layout(shuffle: str, per_group: int) -> None:
    """Tells readers of cells how many passes the shuffle had."""
    Path(shuffle, "layout.json").write_text(json.dumps({"per_group": per_group}), encoding="utf-8")


def cell_place(shuffle: str, cell: int) -> tuple[str, int]:
    """Folder of a cell's runs, and the cell's place in each."""
    per_group = int(json.loads(Path(shuffle, "layout.json").read_text(encoding="utf-8"))["per_group"])
    if per_group:
        return f"{shuffle}/group-{cell // per_group:05d}", cell % per_group
    return f"{shuffle}/runs", cell
