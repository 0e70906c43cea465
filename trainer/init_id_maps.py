"""The ids of a vocabulary or managed table that begins with another's: taken over bucket by bucket, or dealt to other
buckets. Keys as in IdMapper.state: per row (ids, counts, last_seen), per bucket (used, clock), per candidate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from embeddings.buckets import bucket_of
from embeddings.held import Held
from embeddings.specs import RESERVED_ROWS, TableSpec
from pipelines.batch import Int64
from trainer.checkpoint.reading import BLOCK_BYTES, SavedTensors, blocks
from trainer.init_rows import Dealt
from trainer.model_description import TableDescription

OF_ROWS = ("ids", "counts", "last_seen")


@dataclass(frozen=True)
class _Known:
    """Ids that had rows: one entry an id. values: of OF_ROWS, as far as the table has them."""

    old_rows: Int64
    values: dict[str, Int64]

    def chosen(self, of: Int64) -> _Known:
        return _Known(self.old_rows[of], {key: value[of] for key, value in self.values.items()})


def carry_ids(saved: SavedTensors, prefix: str, held: Mapping[str, Held]) -> list[str]:
    """The map of a table whose buckets are the same or have grown. held: {key: this process's part}, filled in place.

    Returns what was left out: keys of candidates, who have other places where there are more or fewer of them.
    """
    left_out = []
    for key, part in held.items():
        record = saved.tensors.get(f"{prefix}{key}")
        if record is None or (key not in OF_ROWS and tuple(record.size) != part.size):
            left_out.append(key)
            continue
        for block in (block for chunk in part.chunks for block in blocks(chunk)):
            sizes = (block.sizes[0], *record.size[1:])
            values = saved.read(f"{prefix}{key}", (block.offsets[0], *(0 for _ in sizes[1:])), sizes)
            block.tensor[tuple(slice(0, size) for size in sizes)] = values
    return left_out


def deal_ids(
    saved: SavedTensors,
    prefix: str,
    before: TableDescription,
    now: TableSpec,
    held: Mapping[str, Held],
    rows: Held,
) -> Dealt:
    """The known ids of this process's buckets, `held` filled in place, and the rows that come along into what it holds
    of the table. Ids that find no room: of a managed table those unseen for longest, of a vocabulary those that came
    last.

    Every rank reads the whole map block by block, and keeps the ids of its own buckets.
    """
    mapped = _hull([(c.offsets[0], c.offsets[0] + c.sizes[0]) for c in held["ids"].chunks])
    size = now.rows_per_bucket
    in_rows = [(c.offsets[0] // size, -(-(c.offsets[0] + c.sizes[0]) // size)) for c in rows.chunks]
    buckets = _hull([(span.start, span.stop) for span in (mapped, _hull(in_rows)) if len(span)])
    known, clock = _ids_of(saved, prefix, before, now, held, buckets)
    bucket = bucket_of(now, known.values["ids"])
    age = -known.values["last_seen"] if "last_seen" in known.values else np.zeros(len(bucket), np.int64)
    order = np.lexsort((known.old_rows, age, bucket))
    kept = order[_rank_in_run(bucket[order]) < _room(now, bucket[order])]
    lost = np.setdiff1d(order, kept, assume_unique=True)
    kept = np.sort(kept)  # by old row: places are handed out in the order in which ids came
    by_bucket = kept[np.argsort(bucket[kept], kind="stable")]
    known, bucket, lost_from = known.chosen(by_bucket), bucket[by_bucket], bucket[lost]
    slot = _rank_in_run(bucket) + np.where(bucket == 0, RESERVED_ROWS, 0)
    own = _within(bucket, mapped)
    _fill(held, known.chosen(own), bucket[own] - mapped.start, slot[own], clock)
    old_rows, new_rows = known.old_rows, bucket * size + slot
    if 0 in buckets:
        reserved = np.arange(RESERVED_ROWS)
        old_rows, new_rows = np.concatenate([reserved, old_rows]), np.concatenate([reserved, new_rows])
    by_old = np.argsort(old_rows, kind="stable")
    moved = len(own) + (RESERVED_ROWS if 0 in mapped else 0)
    return Dealt(old_rows[by_old], new_rows[by_old], moved, len(_within(lost_from, mapped)))


def _hull(spans: Sequence[tuple[int, int]]) -> range:
    """From the first to the last of some stretches of buckets."""
    return range(min(first for first, _ in spans), max(last for _, last in spans)) if spans else range(0)


def _within(bucket: Int64, buckets: range) -> Int64:
    """Places of those that are."""
    return np.flatnonzero((bucket >= buckets.start) & (bucket < buckets.stop))


def _ids_of(
    saved: SavedTensors, prefix: str, before: TableDescription, now: TableSpec, held: Mapping[str, Held], buckets: range
) -> tuple[_Known, int]:
    """Those that go to `buckets` of the new table, by ascending old row; and the map's clock."""
    keys = [key for key in OF_ROWS if key in held and f"{prefix}{key}" in saved.tensors]
    parts: list[_Known] = [_Known(np.empty(0, np.int64), {key: np.empty(0, np.int64) for key in keys})]
    clock = 0
    for first, last in _blocks(before):
        count = last - first
        read = {key: saved.read(f"{prefix}{key}", (first, 0), (count, before.rows_per_bucket)).numpy() for key in keys}
        used = saved.read(f"{prefix}used", (first,), (count,)).numpy()
        if f"{prefix}clock" in saved.tensors:
            clock = max(clock, int(saved.read(f"{prefix}clock", (first,), (count,)).max()))
        taken = np.arange(before.rows_per_bucket) < used[:, None]
        rows = np.flatnonzero(taken) + first * before.rows_per_bucket
        of_block = _Known(rows, {key: value[taken] for key, value in read.items()})
        target = bucket_of(now, of_block.values["ids"])
        own = _within(target, buckets)
        parts.append(of_block.chosen(own[rows[own] >= RESERVED_ROWS]))
    values = {key: np.concatenate([part.values[key] for part in parts]) for key in keys}
    return _Known(np.concatenate([part.old_rows for part in parts]), values), clock


def _fill(held: Mapping[str, Held], known: _Known, local_bucket: Int64, slot: Int64, clock: int) -> None:
    """Candidates stay as a new map has them: none."""
    for key, part in held.items():
        for chunk in part.chunks:
            if key in known.values:
                chunk.tensor[torch.from_numpy(local_bucket), torch.from_numpy(slot)] = torch.from_numpy(
                    known.values[key]
                )
            elif key == "used":
                chunk.tensor.add_(torch.from_numpy(np.bincount(local_bucket, minlength=len(chunk.tensor))))
            elif key == "clock":
                chunk.tensor.fill_(clock)


def _room(spec: TableSpec, bucket: Int64) -> Int64:
    return np.where(bucket == 0, spec.rows_per_bucket - RESERVED_ROWS, spec.rows_per_bucket)


def _rank_in_run(values: Int64) -> Int64:
    """0, 1, 2, … within each run of equal neighbours."""
    first = np.append(True, values[1:] != values[:-1])[: len(values)]
    starts = np.flatnonzero(first)
    ranks: Int64 = np.arange(len(values)) - np.repeat(starts, np.diff(np.append(starts, len(values))))
    return ranks


def _blocks(before: TableDescription) -> Iterator[tuple[int, int]]:
    step = max(1, BLOCK_BYTES // (8 * before.rows_per_bucket))
    for first in range(0, before.buckets, step):
        yield first, min(before.buckets, first + step)
