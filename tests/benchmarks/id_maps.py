"""What it costs to map ids to rows: hash, vocabulary and managed tables, and a dict of Python's.

    python -m tests.benchmarks.id_maps [--quick]

One process, tables that are full of `live` ids. Each batch has `batch` unique ids, spread over all of them (the worst
case for caches), of which one in twenty is new: a managed table evicts as many. Figures are CPU seconds of this process
for a million ids, the journal that checkpoints need and the rows to reset among them; `fill`: of the first million ids.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import click
import numpy as np

from embeddings.idmap import IdMapper
from embeddings.specs import TableSpec
from pipelines.batch import Int64, TableIds
from pipelines.hashing import mix
from tests.benchmarks import harness

MILLION = 1_000_000
NEW = 20  # one id in so many
BUCKETS = 64


@dataclass(frozen=True)
class Plan:
    """live: of each size of table. batch: unique ids a step. rounds: steps of each contestant."""

    live: tuple[int, ...]
    batch: int
    rounds: int


FULL = Plan((10**6, 10**7), 200_000, 15)
QUICK = Plan((10**6,), 100_000, 7)
TINY = Plan((20_000,), 2_000, 2)


def spec(mapping: str, live: int, evict: str = "lru", admit_after: int = 1) -> TableSpec:
    """A managed table has room for the live ids alone, a vocabulary for the new ones too."""
    rows = live * 3 // 2 if mapping == "vocabulary" else live
    buckets = 0 if mapping == "hash" else BUCKETS
    return TableSpec("t", rows, 16, mapping, buckets, "row_wise", evict=evict, admit_after=admit_after)  # type: ignore[arg-type]


class Mapped:
    """One table, filled with ids 0 … live − 1, hashed over 64 bits."""

    def __init__(self, table: TableSpec, live: int, batch: int) -> None:
        self.mapper = IdMapper({"t": table})
        self._live, self._batch, self._rng = live, batch, np.random.default_rng(0)
        self._step = self._new = 0
        began = time.process_time()
        for first in range(0, live, batch):
            ids = self._hashed(np.arange(first, min(live, first + batch)))
            for _ in range(table.admit_after):
                self._map(ids)
        self.fill_seconds = (time.process_time() - began) / live * MILLION
        self.mapper.stats()

    def seconds_per_million(self) -> float:
        """One batch."""
        ids = batch_of(self._rng, self._live, self._batch, self._new)
        self._new += self._batch // NEW
        ids = self._hashed(ids)
        began = time.process_time()
        self._map(ids)
        return (time.process_time() - began) / len(ids) * MILLION

    def _map(self, ids: Int64) -> None:
        self._step += 1
        self.mapper.rows_of({"t": TableIds(ids, np.ones_like(ids))}, train=True, now=self._step)
        self.mapper.mark(self._step)
        self.mapper.take_resets(self._step)

    def _hashed(self, ids: Int64) -> Int64:
        found: Int64 = np.unique(mix(ids, 1).view(np.int64))
        return found


class Dict:
    """Lookups alone, in plain Python."""

    def __init__(self, live: int, batch: int) -> None:
        self._rows = {i: i for i in mix(np.arange(live), 1).view(np.int64).tolist()}
        self._live, self._batch, self._rng = live, batch, np.random.default_rng(0)

    def seconds_per_million(self) -> float:
        """One batch."""
        ids = mix(batch_of(self._rng, self._live, self._batch, 0), 1).view(np.int64)
        began = time.process_time()
        np.fromiter((self._rows.get(i, 1) for i in ids.tolist()), np.int64, len(ids))
        return (time.process_time() - began) / len(ids) * MILLION


def batch_of(rng: np.random.Generator, live: int, batch: int, new: int) -> Int64:
    """Known ids from all over the table, and one in NEW that was not there before."""
    known = rng.integers(0, live, batch - batch // NEW)
    return np.unique(np.concatenate([known, live + new + np.arange(batch // NEW)]))


def compete(live: int, plan: Plan) -> dict[str, list[float]]:
    """{contestant: seconds of each round}, after a table of it."""
    tables = {
        "hash": spec("hash", live),
        "vocabulary": spec("vocabulary", live),
        "managed, lru": spec("managed", live),
        "managed, lfu": spec("managed", live, "lfu"),
        "managed, lru, admitted at the 2nd sighting": spec("managed", live, "lru", 2),
    }
    mapped = {name: Mapped(table, live, plan.batch) for name, table in tables.items()}
    contestants: dict[str, Callable[[], float]] = {name: each.seconds_per_million for name, each in mapped.items()}
    contestants["a dict, lookups alone"] = Dict(live, plan.batch).seconds_per_million
    figures = harness.in_turn(contestants, plan.rounds)
    rows = []
    for name, seconds in figures.items():
        stats = mapped[name].mapper.stats()["t"] if name in mapped else None
        rows.append(
            [
                name,
                f"{median(seconds):.3f} ({min(seconds):.3f}–{max(seconds):.3f})",
                f"{mapped[name].fill_seconds:.3f}" if stats else "",
                f"{stats.evictions:,}" if stats else "",
            ]
        )
    harness.show("id_maps", {"live ids": f"{live:,}", "ids a batch": f"{plan.batch:,}", "new": f"1 in {NEW}"})
    harness.table(["CPU seconds a million ids", "a batch", "fill", "evicted"], rows)
    return figures


@click.command()
@click.option("--quick", is_flag=True, help="10⁶ ids only: within a minute.")
@click.option("--tiny", is_flag=True, hidden=True)
def main(quick: bool, tiny: bool) -> None:
    """See the module."""
    harness.prepare_process()
    plan = TINY if tiny else QUICK if quick else FULL
    for live in plan.live:
        figures = compete(live, plan)
    lru, vocabulary = figures["managed, lru"], figures["vocabulary"]
    ratios = {
        "managed_over_vocabulary": harness.ratio(lru, vocabulary),
        "vocabulary_over_dict": harness.ratio(vocabulary, figures["a dict, lookups alone"]),
        "managed_seconds_per_million": median(lru),
    }
    harness.finish("id_maps", ratios, threads=1)


if __name__ == "__main__":
    main()
