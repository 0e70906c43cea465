"""Batches between processes of one run: an Arrow block a rank, never a file. Imports pipelines, numpy and pyarrow
only."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from pipelines.batch import Batch
from pipelines.carry import carry_window
from pipelines.reading import Reading
from pipelines.windows import Window

ALIGNMENT = 64


def order_block(window: Window) -> pa.Table:
    """The block that asks for a window."""
    return pa.table({"window": pa.array([pickle.dumps(window)], pa.binary())})


def carry_block(orders: pa.Table, reading: Reading, world_size: int) -> Iterator[pa.Table]:
    """One block a rank for each window ordered, in the order of the ranks: what a Ray task runs. Raises DataError."""
    for order in orders.column("window").to_pylist():
        window: Window = pickle.loads(order)  # noqa: S301 - made by this run's own feed
        carried = carry_window(window, reading, world_size, range(world_size))
        for rank in range(world_size):
            packed = pack(carried.pop(rank))
            offsets = pa.py_buffer(np.array([0, len(packed)], np.int64))
            payload = pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, pa.py_buffer(packed)])
            yield pa.table({"rank": pa.array([rank], pa.int32()), "payload": payload})


def batches_of(block: pa.Table, rank: int) -> list[Batch]:
    """A rank's batches of a window. Arrays are the caller's own: the block may go."""
    assert block.column("rank")[0].as_py() == rank, "blocks of a window come in the order of the ranks"
    return unpack(bytearray(block.column("payload").chunk(0)[0].as_buffer()))


def pack(batches: list[Batch]) -> bytearray:
    """[length of the frame][frame: pickle of (structure, buffer lengths)][aligned buffers], arrays out of band (pickle
    protocol 5)."""
    buffers: list[pickle.PickleBuffer] = []
    structure = pickle.dumps(batches, protocol=5, buffer_callback=buffers.append)
    views = [buffer.raw() for buffer in buffers]
    frame = pickle.dumps((structure, [len(view) for view in views]))
    bounds = _bounds(8 + len(frame), [len(view) for view in views])
    packed = bytearray(bounds[-1][1] if bounds else 8 + len(frame))
    packed[:8] = len(frame).to_bytes(8, "little")
    packed[8 : 8 + len(frame)] = frame
    for (begin, end), view in zip(bounds, views, strict=True):
        packed[begin:end] = view
    return packed


def unpack(packed: bytearray) -> list[Batch]:
    """The batches of `pack`; their arrays are views of `packed`, and writable."""
    length = int.from_bytes(packed[:8], "little")
    structure, lengths = pickle.loads(packed[8 : 8 + length])  # noqa: S301 - made by `pack` in a task of this run
    view = memoryview(packed)
    buffers = [view[begin:end] for begin, end in _bounds(8 + length, lengths)]
    batches: list[Batch] = pickle.loads(structure, buffers=buffers)  # noqa: S301 - as above
    return batches


def _bounds(begin: int, lengths: list[int]) -> list[tuple[int, int]]:
    bounds = []
    for length in lengths:
        begin += -begin % ALIGNMENT
        bounds.append((begin, begin + length))
        begin += length
    return bounds
