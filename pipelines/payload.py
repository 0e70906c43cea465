"""Batches between processes of one run: an Arrow block a rank and task, never a file. Imports pipelines, numpy and
pyarrow only.

A block's payload is one frame a window: [length of the head][head: pickle of (structure, buffer lengths)][buffers],
arrays out of band (pickle protocol 5), so that a rank's arrays are views of the shared memory its block lies in.
"""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.batch import Batch
from pipelines.carry import carry_window
from pipelines.errors import DataError
from pipelines.reading import Reading
from pipelines.windows import Window

ALIGNMENT = 64
Carry = Callable[[Window, Reading, int, Iterable[int]], dict[int, list[Batch]]]


class Packer:
    """Frames of one rank, one after the other, in memory that serves task after task: fresh pages are dearer than the
    copy into them."""

    def __init__(self) -> None:
        self._memory = np.empty(1 << 20, np.uint8)
        self.ends: list[int] = []

    def clear(self) -> None:
        """Begins anew. What `frames` gave before is overwritten: it has been copied into the object store by then."""
        self.ends = []

    def add(self, batches: list[Batch]) -> None:
        """One window's batches of the rank."""
        buffers: list[pickle.PickleBuffer] = []
        structure = pickle.dumps(batches, protocol=5, buffer_callback=buffers.append)
        views = [buffer.raw() for buffer in buffers]
        head = pickle.dumps((structure, [len(view) for view in views]))
        begin = self.ends[-1] if self.ends else 0
        first = begin + 8 + len(head)
        bounds = _bounds(first, [len(view) for view in views])
        end = bounds[-1][1] if bounds else first
        end += -end % ALIGNMENT
        self._reserve(end)
        memory = self._memory.data
        memory[begin : begin + 8] = len(head).to_bytes(8, "little")
        memory[begin + 8 : first] = head
        for (start, stop), view in zip(bounds, views, strict=True):
            memory[start:stop] = view
        self.ends.append(end)

    def frames(self) -> npt.NDArray[np.uint8]:
        """All of them; a view."""
        return self._memory[: self.ends[-1] if self.ends else 0]

    def _reserve(self, size: int) -> None:
        if size > len(self._memory):
            grown = np.empty(size + size // 2, np.uint8)
            used = self.ends[-1] if self.ends else 0
            grown[:used] = self._memory[:used]
            self._memory = grown


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
    payload = np.asarray(_Shared(block.column("payload").chunk(0)[0].as_buffer())).data
    begin = 0
    for end in block.column("ends")[0].as_py():
        yield unpack(payload[begin:end])
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


def pack(batches: list[Batch]) -> memoryview:
    """One window's frame, in memory of its own."""
    packer = Packer()
    packer.add(batches)
    return packer.frames().data


def unpack(view: memoryview) -> list[Batch]:
    """The batches of a frame; their arrays are views of it."""
    length = int.from_bytes(view[:8], "little")
    structure, lengths = pickle.loads(view[8 : 8 + length])  # noqa: S301 - made by a Packer in a task of this run
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
