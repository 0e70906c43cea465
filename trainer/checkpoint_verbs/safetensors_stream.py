"""A safetensors file written piece by piece: no tensor of it need ever be in memory whole.

The format: 8 bytes, the length of the header · the header, JSON, {key: dtype, shape, data_offsets} · the tensors'
bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from trainer.checkpoint.manifest import FileRecord

CODES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One tensor of a file. pieces: its values in order, any way cut along its first dimension."""

    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    pieces: Iterable[torch.Tensor]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_safetensors(path: Path, entries: list[Entry]) -> FileRecord:
    """Durable on return. Raises RuntimeError where the pieces are not what their entry says."""
    header, end = {}, 0
    for entry in entries:
        begin, end = end, end + entry.bytes
        header[entry.key] = {"dtype": CODES[entry.dtype], "shape": entry.shape, "data_offsets": (begin, end)}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    sha256 = hashlib.sha256()
    with path.open("wb") as file:
        for part in (len(text).to_bytes(8, "little"), text):
            file.write(part)
            sha256.update(part)
        for entry in entries:
            begin = file.tell()
            for piece in entry.pieces:
                if piece.dtype != entry.dtype:
                    raise RuntimeError(f"{entry.key} is {entry.dtype}, a piece of it is {piece.dtype}")
                data = piece.contiguous().reshape(-1).view(torch.uint8).numpy().data
                file.write(data)
                sha256.update(data)
            if file.tell() - begin != entry.bytes:
                raise RuntimeError(f"{entry.key} has {entry.bytes} bytes, its pieces {file.tell() - begin}")
        file.flush()
        os.fsync(file.fileno())
        return FileRecord(bytes=file.tell(), sha256=sha256.hexdigest())
