"""The tables as they stood at a step boundary, read later and block by block from the memory that training goes on in.

Nothing is copied when the snapshot is taken. Before a later step updates rows, those of them that are still to be read
are copied aside, weights and optimizer state (copy before write). Who reads a block takes the live memory first and
then lays the rows over it that were copied aside until that moment: whatever an update had begun to change by then was
copied aside before the update, so a torn row is always put right.

Two threads: the one that trains calls the watcher, the one that writes reads blocks in ascending order.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from embeddings.held import Held, LocalChunk
from embeddings.touched import RowMap, ShardRows, TouchedRows
from pipelines.batch import Int64

TABLES = "tables/"
BLOCK_BYTES = 1 << 25  # of all tensors of a block of rows
Bytes = np.ndarray[Any, np.dtype[np.void]]


@dataclass(frozen=True)
class _Piece:
    """Rows copied aside. rows: of the shard, ascending, each once. values: of each of the shard's tensors. ready: on
    CUDA, when they are."""

    rows: Int64
    values: tuple[torch.Tensor, ...]
    ready: Any = None

    @property
    def bytes(self) -> int:
        return sum(value.nbytes for value in self.values)


class FrozenShard:
    """Rows [first, first + rows) of a table, with all tensors of them that this rank holds.

    parts: (tensor's name, its box). generations: of the rows, None = nobody trains meanwhile.
    """

    def __init__(self, table: str, parts: list[tuple[str, LocalChunk]], generations: ShardRows | None) -> None:
        self.table, self.parts, self.generations = table, parts, generations
        self.first = parts[0][1].offsets[0]
        self.rows = parts[0][1].sizes[0]
        self._lock = threading.Lock()
        self._pieces: list[_Piece] = []
        self._read_until = 0

    @property
    def row_bytes(self) -> int:
        return sum(chunk.tensor[:1].nbytes for _, chunk in self.parts)

    @property
    def block_rows(self) -> int:
        return max(1, BLOCK_BYTES // self.row_bytes)

    @property
    def read_until(self) -> int:
        """Rows before this one may change again."""
        return self._read_until

    def keep(self, rows: torch.Tensor) -> int:
        """Copies rows aside (int64 on the tensors' device, ascending, each once). Returns their bytes."""
        values = tuple(chunk.tensor.index_select(0, rows.to(chunk.tensor.device)) for _, chunk in self.parts)
        ready = None
        if rows.is_cuda:
            values = tuple(value.to("cpu", non_blocking=True) for value in values)
            ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            ready.record()
        piece = _Piece(rows.cpu().numpy(), values, ready)
        with self._lock:
            self._pieces.append(piece)
        return piece.bytes

    def changed_rows(self, generation: int) -> Int64:
        """Ascending: the shard's rows last looked up in that generation, as of the snapshot. A row that is looked up
        again while they are being gathered was copied aside before its mark changed."""
        assert self.generations is not None
        live = np.flatnonzero(self.generations.generation_R.cpu().numpy() == generation)
        with self._lock:
            kept = [piece.rows for piece in self._pieces]
        if not kept:
            return live
        changed: Int64 = _ascending(torch.from_numpy(np.concatenate([live, *kept]))).numpy()
        return changed

    def block(self, start: int, stop: int, chosen: Int64 | None = None) -> tuple[list[Bytes], int]:
        """Bytes of rows [start, stop), or of those of the `chosen` rows (ascending), one array a tensor; and the bytes
        of what was copied aside and is now let go. Rows before `stop` count as read from then on."""
        buffers = [_copy(chunk.tensor, start, stop, chosen) for _, chunk in self.parts]
        with self._lock:
            pieces = list(self._pieces)
            self._pieces = [piece for piece in pieces if piece.rows[-1] >= stop]
            self._read_until = stop
        for piece in pieces:
            low, high = np.searchsorted(piece.rows, (start, stop))
            if low == high:
                continue
            if piece.ready is not None:
                piece.ready.synchronize()
            rows = piece.rows[low:high]
            at = rows - start if chosen is None else np.searchsorted(chosen, rows)
            for buffer, value in zip(buffers, piece.values, strict=True):
                buffer[at] = as_bytes(value)[low:high]
        return buffers, sum(piece.bytes for piece in pieces if piece.rows[-1] < stop)


class Snapshot:
    """Of all tables of a rank, at a step boundary. changed_only: only rows touched in the generation that ends here.

    limit_bytes: what may lie copied aside; beyond it training waits for the writer. waited_seconds: of training, in
    copying rows aside and in waiting. `close` it when everything is read, or nothing more will be.
    """

    def __init__(
        self,
        tensors: Mapping[str, Held],
        touched: TouchedRows | None = None,
        changed_only: bool = False,
        limit_bytes: int = 1 << 30,
    ) -> None:
        self._touched, self._changed_only, self._limit = touched, changed_only, limit_bytes
        known = {(s.table, s.first): (s, m) for m in touched.maps for s in m.shards} if touched else {}
        self.shards: list[FrozenShard] = []
        self._of_map: dict[int, list[FrozenShard]] = {}
        for (table, first), parts in _shards(tensors).items():
            generations, row_map = known.get((table, first), (None, None))
            shard = FrozenShard(table, parts, generations)
            self.shards.append(shard)
            if row_map is not None:
                self._of_map.setdefault(id(row_map), []).append(shard)
        self._room = threading.Condition()
        self._kept_bytes = 0
        self.waited_seconds = 0.0
        self.most_kept_bytes = 0
        self.generation = touched.end_generation() if touched else 0
        if touched is not None:
            assert touched.watcher is None, "one snapshot at a time"
            touched.watcher = self._before_update

    def chosen(self, shard: FrozenShard) -> Int64 | None:
        """The rows to read of a shard: None = all."""
        if not self._changed_only or shard.generations is None:
            return None
        return shard.changed_rows(self.generation)

    def read(self, shard: FrozenShard, start: int, stop: int, chosen: Int64 | None = None) -> list[Bytes]:
        """See FrozenShard.block. In ascending order, up to the shard's last row."""
        buffers, freed = shard.block(start, stop, chosen)
        if freed:
            with self._room:
                self._kept_bytes -= freed
                self._room.notify_all()
        return buffers

    def close(self) -> None:
        """From here on training copies nothing aside. May be called twice, from either thread."""
        with self._room:
            if self._touched is not None:
                self._touched.watcher = None
                self._touched = None
            self._room.notify_all()

    def _before_update(self, row_map: RowMap, positions: torch.Tensor) -> None:
        started = time.perf_counter()
        generation = row_map.generation.index_select(0, positions)
        pending = generation == self.generation if self._changed_only else generation <= self.generation
        positions = _ascending(positions[pending])
        for shard in self._of_map.get(id(row_map), []):
            assert shard.generations is not None
            base = shard.generations.base
            ends = torch.tensor([base + shard.read_until, base + shard.rows], device=positions.device)
            low, high = torch.searchsorted(positions, ends).tolist()
            if low < high:
                self._keep(shard, positions[low:high] - base)
        self.waited_seconds += time.perf_counter() - started

    def _keep(self, shard: FrozenShard, rows: torch.Tensor) -> None:
        size = shard.keep(rows)
        with self._room:
            self._kept_bytes += size
            self.most_kept_bytes = max(self.most_kept_bytes, self._kept_bytes)
            self._room.wait_for(lambda: self._kept_bytes <= self._limit or self._touched is None)


def small_tensors(tensors: Mapping[str, Held]) -> dict[str, Held]:
    """Everything but the tables' rows, as copies."""
    return {name: _copied(held) for name, held in tensors.items() if not _has_rows(name, tensors)}


def as_bytes(rows: torch.Tensor) -> Bytes:
    """A CPU tensor [n, …] as n opaque values, without a copy where it is contiguous."""
    flat = rows.contiguous().view(len(rows), -1).view(torch.uint8).numpy()
    return flat.view(np.dtype((np.void, flat.shape[1])))[:, 0]


def _copied(held: Held) -> Held:
    if held.is_copy:
        return held
    chunks = tuple(LocalChunk(chunk.offsets, chunk.tensor.detach().clone()) for chunk in held.chunks)
    return Held(held.size, held.dtype, chunks, held.replicated, is_copy=True)


def _has_rows(name: str, tensors: Mapping[str, Held]) -> bool:
    """A table's weight, or a state of its optimizer with something for every row."""
    if not name.startswith(TABLES):
        return False
    weight = tensors.get(f"{name.rpartition('/')[0]}/weight")
    return weight is not None and tensors[name].size[:1] == weight.size[:1]


def _shards(tensors: Mapping[str, Held]) -> dict[tuple[str, int], list[tuple[str, LocalChunk]]]:
    """{(table, first row): its tensors' boxes from that row on}."""
    shards: dict[tuple[str, int], list[tuple[str, LocalChunk]]] = {}
    for name, held in tensors.items():
        if _has_rows(name, tensors):
            table = name.removeprefix(TABLES).rpartition("/")[0]
            for chunk in held.chunks:
                if chunk.tensor.numel():
                    shards.setdefault((table, chunk.offsets[0]), []).append((name, chunk))
    return shards


def _copy(tensor: torch.Tensor, start: int, stop: int, chosen: Int64 | None) -> Bytes:
    """On the host, shared with nothing."""
    if tensor.is_cuda:
        rows = (
            tensor[start:stop] if chosen is None else tensor.index_select(0, torch.from_numpy(chosen).to(tensor.device))
        )
        return as_bytes(rows.cpu())
    # By numpy: torch would start threads of its own beside the ones that train.
    live = as_bytes(tensor[start:stop] if chosen is None else tensor)
    copied: Bytes = live.copy() if chosen is None else live.take(chosen)
    return copied


def _ascending(positions: torch.Tensor) -> torch.Tensor:
    """Each once."""
    found: torch.Tensor = positions.unique()  # type: ignore[no-untyped-call]
    return found
