"""What a rank is to write of a checkpoint, as blocks: their tensors' names and sizes, known before a byte is read, and
what reads them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from embeddings.held import Held, LocalChunk
from pipelines.batch import Int64
from trainer.checkpoint.snapshot import FrozenShard, Snapshot
from trainer.checkpoint.tensor_file import Entry

ID_MAPS = "id_maps/"


@dataclass(frozen=True)
class Stored:
    """One entry of a file. name: of the tensor it is a box of, "" = positions of other entries. positions: the entry
    that says which elements of the box these are, "" = all of them."""

    entry: Entry
    name: str = ""
    offsets: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()
    positions: str = ""


@dataclass(frozen=True)
class Block:
    """Entries that stand one after the other in one file. content: yields each one's bytes, and is called once."""

    stored: tuple[Stored, ...]
    content: Callable[[], Iterable[Any]]

    @property
    def bytes(self) -> int:
        return sum(stored.entry.bytes for stored in self.stored)


def table_blocks(snapshot: Snapshot) -> Iterator[Block]:
    """Of all shards of a snapshot; to be read in this order."""
    for shard in snapshot.shards:
        chosen = snapshot.chosen(shard)
        step = shard.block_rows
        if chosen is None:
            for start in range(0, shard.rows, step):
                yield _dense_rows(snapshot, shard, start, min(start + step, shard.rows))
            continue
        start = 0
        for begin in range(0, len(chosen), step):
            rows = chosen[begin : begin + step]
            last = begin + step >= len(chosen)
            stop = shard.rows if last else int(chosen[begin + step])
            yield _chosen_rows(snapshot, shard, start, stop, rows)
            start = stop


def small_blocks(
    tensors: Mapping[str, Held], rank: int, world_size: int, previous: Mapping[str, torch.Tensor] | None
) -> Iterator[Block]:
    """Of all that are no tables. Replicated ones are dealt over the ranks. previous: id maps of the checkpoint that
    this one is a difference to; of them only what has changed is written."""
    replicated = [name for name, held in tensors.items() if held.replicated]
    mine = set(replicated[rank::world_size])
    for name, held in tensors.items():
        if held.replicated and name not in mine:
            continue
        for chunk in held.chunks:
            if chunk.tensor.numel():
                before = (previous or {}).get(f"{name}@{_origin(chunk)}") if name.startswith(ID_MAPS) else None
                yield _whole(name, chunk) if before is None else _changed(name, chunk, before)


def id_maps(tensors: Mapping[str, Held]) -> dict[str, torch.Tensor]:
    """What the next difference's `previous` is: the tensors as they are, which must not change from then on."""
    return {
        f"{name}@{_origin(chunk)}": chunk.tensor
        for name, held in tensors.items()
        if name.startswith(ID_MAPS)
        for chunk in held.chunks
    }


def _dense_rows(snapshot: Snapshot, shard: FrozenShard, start: int, stop: int) -> Block:
    stored = []
    for name, chunk in shard.parts:
        offsets = (chunk.offsets[0] + start, *chunk.offsets[1:])
        sizes = (stop - start, *chunk.sizes[1:])
        stored.append(Stored(Entry(_key(name, offsets), chunk.tensor.dtype, sizes), name, offsets, sizes))
    return Block(tuple(stored), partial(_read, snapshot, shard, start, stop, None))


def _chosen_rows(snapshot: Snapshot, shard: FrozenShard, start: int, stop: int, rows: Int64) -> Block:
    first, count = int(rows[0]), int(rows[-1] - rows[0]) + 1
    positions = _positions(rows - first)
    key = f"positions/{shard.table}@{shard.first + first}"
    stored = [Stored(Entry(key, _dtype(positions), (len(rows),)))]
    for name, chunk in shard.parts:
        offsets = (chunk.offsets[0] + first, *chunk.offsets[1:])
        sizes = (count, *chunk.sizes[1:])
        entry = Entry(_key(name, offsets), chunk.tensor.dtype, (len(rows), *chunk.sizes[1:]))
        stored.append(Stored(entry, name, offsets, sizes, key))

    def content() -> Iterator[Any]:
        yield positions
        yield from _read(snapshot, shard, start, stop, rows)

    return Block(tuple(stored), content)


def _read(snapshot: Snapshot, shard: FrozenShard, start: int, stop: int, rows: Int64 | None) -> list[Any]:
    return [array.view(np.uint8) for array in snapshot.read(shard, start, stop, rows)]


def _whole(name: str, chunk: LocalChunk) -> Block:
    entry = Entry(_key(name, chunk.offsets), chunk.tensor.dtype, chunk.sizes)
    return Block((Stored(entry, name, chunk.offsets, chunk.sizes),), lambda: [_raw(chunk.tensor)])


def _changed(name: str, chunk: LocalChunk, before: torch.Tensor) -> Block:
    """The elements of a box that are not as they were; all of them where that is shorter."""
    found = np.flatnonzero(chunk.tensor.numpy() != before.numpy())
    positions = _positions(found)
    if positions.nbytes + len(found) * chunk.tensor.element_size() >= chunk.tensor.nbytes:
        return _whole(name, chunk)
    values = chunk.tensor.reshape(-1)[torch.from_numpy(found)]
    key = f"positions/{_key(name, chunk.offsets)}"
    return Block(
        (
            Stored(Entry(key, _dtype(positions), (len(found),))),
            Stored(
                Entry(_key(name, chunk.offsets), values.dtype, (len(found),)), name, chunk.offsets, chunk.sizes, key
            ),
        ),
        lambda: [positions, _raw(values)],
    )


def _positions(positions: Int64) -> np.ndarray[Any, Any]:
    """In 4 bytes each where they fit."""
    return positions.astype(np.int32) if not len(positions) or positions[-1] < 2**31 else positions


def _dtype(array: np.ndarray[Any, Any]) -> torch.dtype:
    return torch.int32 if array.dtype == np.int32 else torch.int64


def _raw(tensor: torch.Tensor) -> Any:
    host = tensor.detach().cpu().contiguous().view(-1)
    return host.view(torch.uint8).numpy()


def _key(name: str, offsets: tuple[int, ...]) -> str:
    """Unique in a file: a rank may hold several boxes of a tensor."""
    return f"{name}@{','.join(map(str, offsets))}"


def _origin(chunk: LocalChunk) -> str:
    return ",".join(map(str, (*chunk.offsets, math.prod(chunk.sizes))))
