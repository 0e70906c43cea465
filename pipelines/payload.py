"""Batches between processes of one run: an Arrow block a rank and task, never a file. Imports pipelines, numpy and
pyarrow only."""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.batch import Batch
from pipelines.carry import carry_window
from pipelines.errors import DataError
from pipelines.frames import Packer, unpack
from pipelines.reading import Reading
from pipelines.windows import Window

Carry = Callable[[Window, Reading, int, Iterable[int]], dict[int, list[Batch]]]


_packers: list[Packer] = []  # of this process, one a rank


def order_block(windows: Sequence[Window]) -> pa.Table:
    """The block that asks a task for these windows."""
    return pa.table({"order": pa.array([pickle.dumps(tuple(windows))], pa.binary())})


def carry_block(orders: pa.Table, reading: Reading, world_size: int, carry: Carry = carry_window) -> Iterator[pa.Table]:
    """One block a rank with its batches of the windows ordered, in the order of the ranks: what a Ray task runs.

    An error is not raised but carried, to the place where the failing window's batches would be.
    """
    [order] = orders.column("order").to_pylist()
    windows: tuple[Window, ...] = pickle.loads(order)  # noqa: S301 - made by this run's own feed
    _packers.extend(Packer() for _ in range(world_size - len(_packers)))
    packers, problems, crash = _packers[:world_size], None, None
    for packer in packers:
        packer.clear()
    try:
        for window in windows:
            carried = carry(window, reading, world_size, range(world_size))
            for rank, packer in enumerate(packers):
                packer.add(carried.pop(rank))
    except DataError as error:
        problems = list(error.problems)
    except Exception:
        crash = traceback.format_exc()
    for rank, packer in enumerate(packers):
        yield _block(rank, packer, problems, crash)


def _block(rank: int, packer: Packer, problems: list[str] | None, crash: str | None) -> pa.Table:
    frames = packer.frames()
    offsets = pa.py_buffer(np.array([0, len(frames)], np.int64))
    return pa.table(
        {
            "rank": pa.array([rank], pa.int32()),
            "ends": pa.array([packer.ends], pa.list_(pa.int64())),
            "problems": pa.array([problems], pa.list_(pa.string())),
            "crash": pa.array([crash], pa.string()),
            "payload": pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, pa.py_buffer(frames)]),
        }
    )


def batches_of(block: pa.Table, rank: int) -> Iterator[list[Batch]]:
    """A rank's batches, window after window; then the error that came in place of the next one, if one did.

    Arrays are views of the block's memory, which lives as long as they do. They are writable, which tensors must be:
    the block is this rank's alone.
    """
    assert block.column("rank")[0].as_py() == rank, "blocks of a task come in the order of the ranks"
    payload = np.asarray(_Shared(block.column("payload").chunk(0)[0].as_buffer()))
    begin = 0
    for end in block.column("ends")[0].as_py():
        yield unpack(payload, begin)
        begin = end
    problems, crash = block.column("problems")[0].as_py(), block.column("crash")[0].as_py()
    if problems is not None:
        raise DataError(problems)
    if crash is not None:
        raise RuntimeError(f"a reader failed:\n{crash}")


class _Shared:
    """Memory of the object store as numpy sees it. numpy keeps this object, and so the memory, as long as a view."""

    def __init__(self, buffer: pa.Buffer) -> None:
        self._buffer = buffer
        self.__array_interface__: dict[str, Any] = {
            "version": 3,
            "shape": (buffer.size,),
            "typestr": "|u1",
            "data": (buffer.address, False),
        }
