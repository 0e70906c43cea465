"""Whether metadata.json can be what a checkpoint is read by. It is not believed before: nobody who writes to a store
makes a reader crash, take memory without bounds, or loop for ever."""

from __future__ import annotations

import math
from collections.abc import Iterator

from trainer.checkpoint.manifest import METADATA, Chunk, Commit, DamagedError, TensorIndex, TensorRecord, torch_dtype

MOST_ELEMENTS = 2**62
MOST_LINES = 5


def check_index(place: str, index: TensorIndex, commit: Commit) -> None:
    """Raises DamagedError, a line for each tensor that cannot be."""
    wrong = [f"{name} {why}" for name, record in index.tensors.items() if (why := _wrong(name, record, commit))]
    if wrong:
        raise DamagedError(
            [
                f"checkpoint {place}: {METADATA}: {line} → boxes lie in their tensor, and in the checkpoint's files → "
                "use an older checkpoint"
                for line in wrong[:MOST_LINES]
            ]
        )


def check_base(place: str, index: TensorIndex, base: TensorIndex) -> None:
    """Raises DamagedError where a difference is to tensors that its base has not, or has in another size or dtype."""
    for name, record in index.tensors.items():
        before = base.tensors.get(name)
        partly = any(chunk.positions for chunk in record.chunks)
        if partly and (before is None or (before.size, before.dtype) != (record.size, record.dtype)):
            raise DamagedError(
                f"checkpoint {place}: {METADATA}: {name} is a difference, and its base has no such tensor → they are "
                "of one model → use an older checkpoint"
            )


def _wrong(name: str, record: TensorRecord, commit: Commit) -> str:
    """The first thing that is, "" = nothing."""
    torch_dtype(record.dtype)
    if any(size < 0 for size in record.size) or math.prod(map(float, record.size)) > MOST_ELEMENTS:
        return f"has the size {record.size}"
    return _wrong_kind(name, record) or next(_wrong_chunks(record, commit), "")


def _wrong_kind(name: str, record: TensorRecord) -> str:
    """What readers take for granted of tables and id maps."""
    kind, _, rest = name.partition("/")
    if kind == "tables" and len(record.size) != 2:
        return f"has the size {record.size}, and is of a table"
    if kind == "id_maps" and rest.endswith("/ids") and (record.dtype != "int64" or len(record.size) != 2):
        return f"is {record.dtype} of the size {record.size}, and a map's ids"
    if kind == "id_maps" and rest.endswith("/used") and (record.dtype != "int64" or len(record.size) != 1):
        return f"is {record.dtype} of the size {record.size}, and a map's counts"
    return "is a map without a row" if kind == "id_maps" and 0 in record.size else ""


def _wrong_chunks(record: TensorRecord, commit: Commit) -> Iterator[str]:
    itemsize = torch_dtype(record.dtype).itemsize
    for chunk in record.chunks:
        if not _inside(chunk, record.size):
            yield f"has a box at {chunk.offsets} of {chunk.sizes}, and the size {record.size}"
        file = commit.files.get(chunk.file)
        if file is not None and not chunk.positions and math.prod(chunk.sizes) * itemsize > file.bytes:
            yield f"has a box of {chunk.sizes} in {chunk.file}, which has {file.bytes} bytes"


def _inside(chunk: Chunk, size: list[int]) -> bool:
    if not len(chunk.offsets) == len(chunk.sizes) == len(size):
        return False
    boxes = zip(chunk.offsets, chunk.sizes, size, strict=True)
    return all(offset >= 0 and length >= 0 and offset + length <= whole for offset, length, whole in boxes)
