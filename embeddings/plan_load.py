"""What a placement of tables means for each rank: bytes held on the device and on the host, and bytes moved in a step.

The unit of work is a unique id: a rank asks for each of its ids once a table and step, and whoever holds the row reads
it, sends it, receives its gradient and updates it. Ids are taken to fall evenly on a table's rows, which hashing and
buckets see to.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from embeddings.plan_boxes import Box, Placed, Placement
from embeddings.specs import TableSpec
from pipelines.schema import Schema

Floats = npt.NDArray[np.float64]

STATE_BYTES = 4  # optimizer state is fp32 whatever the rows are
ID_BYTES = 8
INT8_ROW_BYTES = 8  # FBGEMM's rows of int8 carry a scale and a bias
CODEC_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}
# fused_uvm_caching keeps this share of the rows on the device too: FBGEMM's default.
CACHE_SHARE = 0.2
# Where nothing is known of the data: ids of a table that a rank asks for.
UNKNOWN_IDS = 4096
# Of a list whose lengths nobody has measured.
ASSUMED_LIST, ASSUMED_CANDIDATES = 4, 8


@dataclass(frozen=True)
class StepIds:
    """Unique ids of each table in a step: asked by one rank, on average, and distinct over all ranks. source: how it is
    known, a line for the reader."""

    asked: dict[str, float]
    distinct: dict[str, float]
    source: str
    measured: bool = False


@dataclass(frozen=True)
class Codecs:
    """Of rows on their way to who asked, and of gradients back."""

    forward: str = "fp32"
    backward: str = "fp32"


def weight_bytes(spec: TableSpec, rows: int, columns: int) -> int:
    return spec.torch_dtype.itemsize * rows * columns


def optimizer_bytes(optimizer: str, rows: int, columns: int) -> int:
    """State of one shard of a table."""
    values = {
        "sgd": 0,
        "adagrad": rows * columns,
        "rowwise_adagrad": rows,
        "adam": 2 * rows * columns,
        "rowwise_adam": rows * (columns + 1),
    }
    return values[optimizer] * STATE_BYTES


def wire_bytes(codec: str, columns: int) -> int:
    """Of one row, or of one row's gradient."""
    return CODEC_BYTES[codec] * columns + (INT8_ROW_BYTES if codec == "int8" else 0)


def held_bytes(spec: TableSpec, kernel: str, box: Box) -> tuple[int, int]:
    """(on the device, on the host) of a box, rows and optimizer state. On CPU the device is the host."""
    weights = weight_bytes(spec, box.rows, box.columns)
    both = weights + optimizer_bytes(spec.optimizer, box.rows, box.columns)
    if kernel == "fused":
        return both, 0
    return (round(CACHE_SHARE * weights) if kernel == "fused_uvm_caching" else 0), both


def assumed_ids(schema: Schema, specs: dict[str, TableSpec], global_rows: int, world_size: int) -> StepIds:
    """From the run file alone: histories half full, 8 candidates a row, lists of 4, and every id another one until a
    table has no more."""
    values = dict.fromkeys(specs, 0.0)
    for table, columns in schema.table_columns().items():
        for name in columns:
            column = schema.columns[name]
            positions = 1.0
            if column.group == "candidates":
                positions = ASSUMED_CANDIDATES
            elif column.group:
                positions = schema.histories[column.group.removeprefix("history.")].max_length / 2
            values[table] += positions * (ASSUMED_LIST if column.kind == "ids" else 1)
    rows = global_rows / world_size

    def most(table: str, count: float) -> float:
        return min(values[table] * count, float(specs[table].rows))

    return StepIds(
        asked={name: most(name, rows) for name in specs},
        distinct={name: most(name, global_rows) for name in specs},
        source=f"unique ids: assumed (histories half full, {ASSUMED_CANDIDATES} candidates, no id twice), not measured",
    )


def unknown_ids(specs: dict[str, TableSpec], world_size: int) -> StepIds:
    """Where nothing is known of the batches either."""
    asked = {name: float(min(UNKNOWN_IDS, spec.rows)) for name, spec in specs.items()}
    distinct = {name: min(world_size * asked[name], float(spec.rows)) for name, spec in specs.items()}
    return StepIds(asked, distinct, f"unique ids: assumed to be {UNKNOWN_IDS} a table and rank")


@dataclass(frozen=True)
class Load:
    """By rank, in bytes. device, host: held. Of a step: lookup: rows read forward. update: rows and state read and
    written in backward. uvm: the part of lookup and update that lies in the host's memory. The others: over the
    wire."""

    device: Floats
    host: Floats
    lookup: Floats
    update: Floats
    uvm: Floats
    rows_sent: Floats
    rows_received: Floats
    gradients_sent: Floats
    gradients_received: Floats
    ids_sent: Floats
    ids_received: Floats

    @property
    def exchange(self) -> Floats:
        """Sent in a step: rows forward and gradients backward."""
        return self.rows_sent + self.gradients_sent

    @property
    def busiest(self) -> Floats:
        """What a rank's link carries, the fuller direction of each way."""
        forward = np.maximum(self.rows_sent, self.rows_received)
        return forward + np.maximum(self.gradients_sent, self.gradients_received)

    @classmethod
    def nothing(cls, world_size: int) -> Load:
        return cls(*(np.zeros(world_size) for _ in range(11)))

    def __add__(self, other: Load) -> Load:
        return Load(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


def table_load(spec: TableSpec, placed: Placed, ids: StepIds, world_size: int, codecs: Codecs) -> Load:
    """Of one table."""
    load = Load.nothing(world_size)
    asked, distinct = ids.asked[spec.name], min(ids.distinct[spec.name], world_size * ids.asked[spec.name])
    rank_B = np.array([box.rank for box in placed.boxes])
    share_B = np.array([box.rows for box in placed.boxes]) / spec.rows
    per_row_B = np.array([_row_bytes(spec, box.columns, codecs) for box in placed.boxes])
    held_B2 = np.array([held_bytes(spec, placed.kernel, box) for box in placed.boxes], float)
    weight_B, state_B, row_B, gradient_B = per_row_B.T
    read_B = world_size * asked * share_B * weight_B
    updated_B = 2 * distinct * share_B * (weight_B + state_B)
    for held, value_B in (
        (load.device, held_B2[:, 0]),
        (load.host, held_B2[:, 1]),
        (load.lookup, read_B),
        (load.update, updated_B),
        (load.uvm, (read_B + updated_B) * (placed.kernel != "fused")),
    ):
        np.add.at(held, rank_B, value_B)
    for out, back, value_B in (
        (load.rows_sent, load.rows_received, asked * share_B * row_B),
        (load.gradients_received, load.gradients_sent, asked * share_B * gradient_B),
        (load.ids_received, load.ids_sent, asked * share_B * ID_BYTES),
    ):
        np.add.at(out, rank_B, (world_size - 1) * value_B)
        np.add.at(back, rank_B, -value_B)  # its own rows cross no wire
        np.add(back, value_B.sum(), out=back)
    return load


def _row_bytes(spec: TableSpec, columns: int, codecs: Codecs) -> tuple[int, int, int, int]:
    """Of one row of a shard: rows, state, and on the wire forward and backward."""
    weights, state = weight_bytes(spec, 1, columns), optimizer_bytes(spec.optimizer, 1, columns)
    return weights, state, wire_bytes(codecs.forward, columns), wire_bytes(codecs.backward, columns)


def total_load(
    placement: Placement, specs: dict[str, TableSpec], ids: StepIds, world_size: int, codecs: Codecs
) -> Load:
    """Of all tables."""
    total = Load.nothing(world_size)
    for name, placed in placement.items():
        total = total + table_load(specs[name], placed, ids, world_size, codecs)
    return total
