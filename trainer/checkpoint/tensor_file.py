"""Files in the safetensors layout, written as a stream and read by ranges.

    8 bytes: length of the header, little endian · header: JSON {key: {dtype, shape, data_offsets}} · the tensors

The library's own writer takes all tensors of a file at once, and its reader maps whole files: both would hold a table
twice. Files of this module are read by the library, and the other way round. Nothing here unpickles.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch

from trainer.checkpoint.manifest import FileRecord

CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
DTYPES = {code: dtype for dtype, code in CODES.items()}
MAX_HEADER_BYTES = 100_000_000  # the library's own limit


@dataclass(frozen=True)
class Entry:
    """One tensor of a file."""

    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class TensorFileWriter:
    """Writes the header at once; then come the tensors' bytes in the order of the entries, in pieces of any size."""

    def __init__(self, write: Callable[[Any], object], entries: Sequence[Entry]) -> None:
        self._write = write
        self._sha256 = hashlib.sha256()
        self._bytes = 0
        header: dict[str, Any] = {}
        end = 0
        for entry in entries:
            header[entry.key] = {
                "dtype": CODES[entry.dtype],
                "shape": list(entry.shape),
                "data_offsets": [end, end + entry.bytes],
            }
            end += entry.bytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self.write(len(text).to_bytes(8, "little") + text)
        self._expected = self._bytes + end

    def write(self, content: Any) -> None:
        """The next bytes: anything with a buffer."""
        view = memoryview(content).cast("B")
        self._sha256.update(view)
        self._write(view)
        self._bytes += len(view)

    def close(self) -> FileRecord:
        """What was written. Raises RuntimeError where that is not what the entries said."""
        if self._bytes != self._expected:
            raise RuntimeError(f"{self._bytes} bytes written, {self._expected} announced")
        return FileRecord(bytes=self._bytes, sha256=self._sha256.hexdigest())


class TensorFile:
    """An open file. Raises ValueError where it is not in this layout."""

    def __init__(self, file: pa.NativeFile) -> None:
        self._file = file
        size = file.size()
        length = int.from_bytes(file.read_at(8, 0), "little")
        if size < 8 or not 0 < length <= min(size - 8, MAX_HEADER_BYTES):
            raise ValueError("no header")
        try:
            header = json.loads(file.read_at(length, 8))
        except (ValueError, RecursionError) as error:
            raise ValueError("its header is not JSON") from error
        if not isinstance(header, dict):
            raise ValueError("its header is not an object")
        self._origin = 8 + length
        self._at: dict[str, int] = {}
        self.entries: dict[str, Entry] = {}
        for key, described in header.items():
            if key != "__metadata__":
                self._at[key], self.entries[key] = _entry(key, described, size - self._origin)

    def read(self, key: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """A tensor, or its elements [start, stop) along the first dimension. Raises ValueError: no such tensor, or not
        that long."""
        entry = self.entries.get(key)
        if entry is None:
            raise ValueError(f"no tensor {key!r}")
        shape = entry.shape
        if shape:
            stop = shape[0] if stop is None else stop
            if not 0 <= start <= stop <= shape[0]:
                raise ValueError(f"tensor {key!r} has no elements {start} to {stop}")
            shape = (stop - start, *shape[1:])
        part = Entry(key, entry.dtype, shape)
        row_bytes = math.prod(shape[1:]) * entry.dtype.itemsize
        return self._tensor(part, self._origin + self._at[key] + start * row_bytes)

    def _tensor(self, part: Entry, offset: int) -> torch.Tensor:
        tensor = torch.empty(part.shape, dtype=part.dtype)
        if not part.bytes:
            return tensor
        content: Any = tensor.view(-1).view(torch.uint8).numpy()
        left = memoryview(content)
        self._file.seek(offset)
        while left:
            count = self._file.readinto(left)
            if not count:
                raise ValueError("it is cut short")
            left = left[count:]
        return tensor


def _entry(key: str, described: Any, room: int) -> tuple[int, Entry]:
    try:
        dtype, shape, (begin, end) = DTYPES[described["dtype"]], described["shape"], described["data_offsets"]
        entry = Entry(key, dtype, tuple(shape))
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"tensor {key!r} is not described as one") from error
    if not all(type(number) is int for number in (*entry.shape, begin, end)):
        raise ValueError(f"tensor {key!r} is not described in whole numbers")
    if not 0 <= begin <= end <= room or end - begin != entry.bytes or min(entry.shape, default=0) < 0:
        raise ValueError(f"tensor {key!r} does not lie in the file")
    return begin, entry
