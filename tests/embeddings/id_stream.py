"""A drifting stream of ids, cut over any number of ranks, for the properties of vocabularies and managed tables."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch.distributed as dist

from embeddings.held import Held
from embeddings.idmap import IdMapper
from pipelines.batch import TableIds
from pipelines.hashing import mix
from pipelines.schema import MISSING_ID
from tests.embeddings.specs import spec

Rows = dict[str, Any]
SPECS = {
    s.name: s
    for s in [
        spec("user", 210, 8, "row_wise", mapping="vocabulary", buckets=7),  # fills up in the stream below
        spec("item", 4000, 8, "row_wise", mapping="vocabulary", buckets=4),
        spec("geo", 50, 8, "auto"),
        replace(spec("query", 84, 8, "row_wise", mapping="managed", buckets=7), admit_after=2),
        replace(spec("ad", 60, 8, "row_wise", mapping="managed", buckets=5), evict="lfu"),
        replace(spec("news", 90, 8, "row_wise", mapping="managed", buckets=2), evict="ttl", ttl_days=1.5),
    ]
}
MANAGED = ("query", "ad", "news")
DAY = 86_400_000_000
EVERY_ID = np.arange(-300, 3000)
STEPS, SAVED, AHEAD = 6, 3, 2


def wide(ids: np.ndarray) -> np.ndarray:
    """All over the 64 bits, as strings' hashes are."""
    return mix(ids, 1).view(np.int64)


def global_batch(step: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(step)
    ids = {"user": rng.integers(-300, 300, 90), "item": rng.zipf(1.3, 400) % 3000, "geo": rng.integers(0, 99, 9)}
    ids |= {name: wide(rng.integers(30 * step, 30 * step + 120, 150)) for name in MANAGED}
    return {name: np.append(values, MISSING_ID) for name, values in ids.items()}


def cut(step: int, rank: int, world_size: int) -> dict[str, TableIds]:
    """This rank's share of the step's global batch, none for rank 1 at step 2; and a filler's ids, counted 0."""
    share = slice(rank, None, world_size)
    if world_size > 1 and step == 2:
        share = {0: slice(5 if world_size == 3 else 0, None), 1: slice(0, 0), 2: slice(0, 5)}[rank]
    tables = {}
    for name, values in global_batch(step).items():
        ids, counts = np.unique(values[share], return_counts=True)
        filler = np.setdiff1d([2990 + step], ids)
        ids, counts = np.append(ids, filler), np.append(counts, np.zeros(len(filler), np.int64))
        order = np.argsort(ids)
        tables[name] = TableIds(ids[order], counts[order].astype(np.int64))
    return tables


def map_steps(mapper: IdMapper, steps: range, rank: int, world_size: int) -> list[Rows]:
    """[step] {table: {id: row}} as this rank was told."""
    told = []
    for step in steps:
        tables = cut(step, rank, world_size)
        rows = mapper.rows_of(tables, train=True, now=step * DAY)
        mapper.mark(step)
        told.append({n: dict(zip(tables[n].ids.tolist(), r.tolist(), strict=True)) for n, r in rows.items()})
    return told


def evicted_at(mapper: IdMapper) -> Rows:
    """{managed table: [step] rows of this rank's buckets that went to another id}."""
    return {name: [mapper._maps[name].evicted(step).tolist() for step in range(STEPS)] for name in MANAGED}


def map_of_all(mapper: IdMapper) -> Rows:
    every = {name: np.sort(wide(EVERY_ID)) if name in MANAGED else EVERY_ID for name in SPECS}
    asked = {name: TableIds(ids, np.ones_like(ids)) for name, ids in every.items()}
    return {name: rows.tolist() for name, rows in mapper.rows_of(asked, train=False).items()}


def write_whole(state: dict[str, Held], file: str, rank: int) -> None:
    """Collective: all ranks' boxes of every tensor in one file."""
    boxes = [(name, chunk.offsets, chunk.tensor.numpy()) for name, held in state.items() for chunk in held.chunks]
    everywhere: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, boxes)
    if rank == 0:
        whole = {name: np.empty(held.size, np.int64) for name, held in state.items()}
        for name, offsets, values in (box for of_rank in everywhere for box in of_rank):
            whole[name][tuple(slice(o, o + n) for o, n in zip(offsets, values.shape, strict=True))] = values
        np.savez(file, **{name.replace("/", "@"): values for name, values in whole.items()})
    dist.barrier()


def read_whole(state: dict[str, Held], file: str) -> None:
    """This rank's boxes of it, in place."""
    saved = np.load(file)
    for name, held in state.items():
        for chunk in held.chunks:
            box = tuple(slice(o, o + n) for o, n in zip(chunk.offsets, chunk.sizes, strict=True))
            chunk.tensor.numpy()[...] = saved[name.replace("/", "@")][box]


def map_on_ranks(rank: int, world_size: int, folder: str) -> dict[str, Any]:
    """Maps all steps, saving as of step SAVED with AHEAD more mapped; then loads what another world size saved."""
    mapper = IdMapper(SPECS, dist.group.WORLD)
    told = map_steps(mapper, range(SAVED + AHEAD + 1), rank, world_size)
    write_whole(mapper.state(upto_step=SAVED), f"{folder}/of_{world_size}.npz", rank)
    told += map_steps(mapper, range(SAVED + AHEAD + 1, STEPS), rank, world_size)
    result: dict[str, Any] = {"told": told, "map": map_of_all(mapper), "evicted": evicted_at(mapper)}
    state = mapper.state()
    result["shards"] = {name: [chunk.tensor.shape for chunk in held.chunks] for name, held in state.items()}
    if world_size == 3:
        resumed = IdMapper(SPECS, dist.group.WORLD)
        state = resumed.state()
        read_whole(state, f"{folder}/of_2.npz")
        resumed.load_state(state)
        result["resumed"] = map_steps(resumed, range(SAVED + 1, STEPS), rank, world_size)
        result["resumed_map"] = map_of_all(resumed)
    return result
