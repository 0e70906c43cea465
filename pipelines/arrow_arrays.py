"""What lies in Arrow arrays, as numpy arrays, without a copy where there is one already.

Few calls a column: on a file of hundreds of narrow columns the calls cost more than the values.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.batch import Array, Int64

Bool = npt.NDArray[np.bool_]
PRIMITIVES = {
    pa.from_numpy_dtype(dtype).id: np.dtype(dtype)
    for dtype in (
        np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64,
        np.float16, np.float32, np.float64,
    )
}  # fmt: skip


def one_array(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """A column's chunks as one array; one chunk is not copied."""
    if not isinstance(column, pa.ChunkedArray):
        return column
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def no_nulls(count: int) -> Bool:
    """False, so many times, in no memory. Read-only."""
    return np.broadcast_to(np.False_, count)


def nulls_of(array: pa.Array) -> Bool:
    """Which values are null. [len(array)]"""
    if not array.null_count:
        return no_nulls(len(array))
    validity = None if pa.types.is_null(array.type) else array.buffers()[0]
    if validity is None:
        return np.asarray(pc.is_null(array))
    begin = array.offset
    bits = np.unpackbits(np.frombuffer(validity, np.uint8), count=begin + len(array), bitorder="little")
    null: Bool = bits[begin:] == 0
    return null


def raw_values(array: pa.Array) -> Array | None:
    """The numbers of an array of a fixed-width number type, anything at all where null; None for other types."""
    dtype = PRIMITIVES.get(array.type.id)
    if dtype is None:
        return None
    data = array.buffers()[1]
    if data is None:
        return np.zeros(len(array), dtype)
    return np.frombuffer(data, dtype, len(array), array.offset * dtype.itemsize)


def list_parts(array: pa.Array) -> tuple[pa.Array, Int64]:
    """The elements of all lists, one list after the other, and the offsets of each list among them (a null list is
    empty). [len(array) + 1]"""
    kind = array.type
    if pa.types.is_null(kind):
        return pa.nulls(0), np.zeros(len(array) + 1, np.int64)
    if not array.null_count and (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        width = np.int32 if pa.types.is_list(kind) else np.int64
        if not len(array):
            return array.flatten(), np.zeros(1, np.int64)
        found = np.frombuffer(array.buffers()[1], width, len(array) + 1, array.offset * width().itemsize)
        first, last = int(found[0]), int(found[-1])
        return array.values.slice(first, last - first), found.astype(np.int64) - first
    lengths = pc.fill_null(pc.list_value_length(array), 0).cast(pa.int64()).to_numpy(zero_copy_only=False)
    return array.flatten(), np.concatenate([[0], np.cumsum(lengths)])
