"""Ids → rows of tables. Row 0 is the missing id's, row 1 is every unknown id's.

hash:       2 + hash(id) mod (rows − 2). Stateless.
identity:   id + 2, unknown outside 0 … rows − 3. Stateless.
vocabulary: an id's bucket is a hash of it; the bucket hands out its rows, at the rank that holds them, to the new ids
            of a step in ascending order, whichever rank saw them. So the map does not depend on the world size. A
            full bucket knows no more ids.
managed:    the same, but an id is admitted after so many sightings, and a full bucket evicts (embeddings/managed.py).
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed as dist

from embeddings.buckets import bucket_of
from embeddings.errors import IdMapError
from embeddings.exchange import Exchange
from embeddings.held import Held, LocalChunk
from embeddings.map_stats import MapStats, MapWatch
from embeddings.specs import MISSING_ROW, TableSpec
from embeddings.stateless import StatelessMap
from embeddings.tables import table_groups
from pipelines.batch import Int64, TableIds
from pipelines.schema import MISSING_ID

if TYPE_CHECKING:
    from embeddings.managed import ManagedMap
    from embeddings.vocabulary import Vocabulary

# Batches are mapped a few steps ahead of being trained; this many can be looked back on.
MARKS = 64
NONE = TableIds(np.empty(0, np.int64), np.empty(0, np.int64))


class IdMapper:
    """Maps the ids of every table of `specs`.

    process_group: whose ranks hold the tables; a gloo group of its own if it is used beside other collectives, None
                   for one process.
    groups:        {group: its tables}, in the order that rows are looked up in (embeddings.tables.key_order).
    """

    def __init__(
        self,
        specs: dict[str, TableSpec],
        process_group: dist.ProcessGroup | None = None,
        groups: dict[str, list[str]] | None = None,
    ) -> None:
        self.specs = specs
        self.groups = table_groups(specs) if groups is None else groups
        self._stateless = StatelessMap(specs)
        self._exchange = Exchange(process_group)
        rank, world_size = self._exchange.rank, self._exchange.world_size
        self._maps = {
            name: _map_of(spec, spec.buckets_of_rank(rank, world_size))
            for name, spec in specs.items()
            if spec.is_bucketed
        }
        self._marks: deque[int] = deque(maxlen=MARKS)
        self._watch = MapWatch(specs)
        self._asked: dict[str, tuple[int, int]] = {}  # admissions, evictions that have been told of

    def rows_of(
        self, tables: dict[str, TableIds], train: bool, now: int = 0, upto_step: int | None = None
    ) -> dict[str, Int64]:
        """{table: ids [U], each once} → {table: rows int64 [U]}. Collective when a table has buckets: every rank calls
        it as often.

        New ids get rows if `train`, if some rank counts them at least once (a filler counts 0), and if their table is
        not frozen. now: newest event time of the global batch, microseconds, the same on every rank. upto_step: as the
        map was after the batch marked so, else as it is; not together with `train`. Distinct ids may share a row: hash
        collisions, and all unknown ones. Raises IdMapError when that step is no longer at hand.
        """
        if upto_step is not None:
            self._require(upto_step)
        rows = self._bucketed_rows(tables, train, now, upto_step) if self._maps else {}
        rows |= self._stateless.rows_of({name: table.ids for name, table in tables.items() if name not in rows})
        if train:
            self._watch.saw(tables, rows)
        return {name: rows[name] for name in tables}

    def mark(self, step: int) -> None:
        """Ids up to the batch of `step` are mapped, no later ones. Also to be called at the start and after a load."""
        for each in self._maps.values():
            each.mark(step)
        if step not in self._marks:
            self._marks.append(step)
            self._forget_before(self._marks[0])

    def take_resets(self, step: int) -> dict[str, Int64]:
        """{table: rows of this rank's buckets, ascending} that the batch of `step` took from one id for another. They
        are to begin anew after the step before and before this one's lookup. States as of earlier steps are forgotten.
        """
        if step not in self._marks:
            return {}
        found = {name: each.evicted(step) for name, each in self._maps.items()}
        while self._marks[0] < step:
            self._marks.popleft()
        self._forget_before(step)
        return {name: rows for name, rows in found.items() if len(rows)}

    def used_rows(self) -> dict[str, int]:
        """{table with buckets: rows handed out on this rank, reserved ones among them}."""
        return {name: int(each.used.sum()) for name, each in self._maps.items()}

    def flows(self) -> dict[str, tuple[int, int]]:
        """{table with buckets: (ids given a row, ids that lost theirs) on this rank, since this process began}."""
        return {name: (each.admissions, each.evictions) for name, each in self._maps.items()}

    def stats(self, whole: bool = False) -> dict[str, MapStats]:
        """{table: what this rank has seen}. Needs no communication. whole: admissions and evictions since this process
        began, not since last asked."""
        found = self._watch.take()
        for name, each in self._maps.items():
            admissions, evictions = (0, 0) if whole else self._asked.get(name, (0, 0))
            found[name] = replace(
                found[name],
                admissions=each.admissions - admissions,
                evictions=each.evictions - evictions,
                rows_in_use=int(each.used.sum()),
                rows=len(each.buckets) * self.specs[name].rows_per_bucket,
            )
            self._asked[name] = each.admissions, each.evictions
        return found

    def state(self, upto_step: int | None = None) -> dict[str, Held]:
        """The map as of the batch marked `upto_step`, or as it is now. Copies; needs no communication.

        All int64, by bucket; this rank holds its whole buckets. "TABLE/ids" [buckets, rows per bucket], "TABLE/used"
        [buckets]; of a managed table also "TABLE/counts", "TABLE/last_seen" as ids, "TABLE/clock" as used, and where
        ids are not admitted at first sight "TABLE/candidate_ids", "…_counts", "…_last_seen" [buckets, places].
        Raises IdMapError when that step is no longer at hand.
        """
        if upto_step is not None:
            self._require(upto_step)
        return {
            f"{name}/{part}": _held(values, self.specs[name].buckets, each.buckets)
            for name, each in self._maps.items()
            for part, values in each.state(upto_step).items()
        }

    def load_state(self, state: dict[str, Held]) -> None:
        """Takes over what was read into this mapper's own `state()`.

        Raises IdMapError when a table's map is missing or has other buckets; nothing is changed then.
        """
        loaded = {}
        for name, each in self._maps.items():
            if any(f"{name}/{part}" not in state for part in each.parts):
                raise IdMapError(
                    f"table {name!r} has no saved {self.specs[name].mapping} map → it is of another run → start from "
                    "one that has it"
                )
            shape = (each.spec.buckets, each.spec.rows_per_bucket)
            if state[f"{name}/ids"].size != shape:
                raise IdMapError(
                    f"table {name!r}: saved as {list(state[f'{name}/ids'].size)} (buckets, rows of each), configured "
                    f"{list(shape)} → both are fixed at birth → set rows and buckets as they were"
                )
            loaded[name] = {part: _local(state[f"{name}/{part}"]) for part in each.parts}
        for name, parts in loaded.items():
            self._maps[name].load(parts)
        self._marks.clear()

    def _bucketed_rows(
        self, tables: dict[str, TableIds], train: bool, now: int, upto_step: int | None
    ) -> dict[str, Int64]:
        """Three lists a table and owner travel: ids to learn, their counts, and ids that are only looked up."""
        learning = {name: train and not self.specs[name].frozen for name in self._maps}
        world_size = self._exchange.world_size
        at: list[list[Int64]] = [[] for _ in range(world_size)]
        asked: list[list[Int64]] = [[] for _ in range(world_size)]
        counts: list[list[Int64]] = [[] for _ in range(world_size)]
        for name in self._maps:
            table = tables.get(name, NONE)
            for owner, (learnt, looked_up) in enumerate(self._by_owner(self.specs[name], table, learning[name])):
                at[owner] += [learnt, looked_up]
                asked[owner] += [table.ids[learnt], table.ids[looked_up]]
                counts[owner].append(table.counts[learnt])
        received = self._exchange.lists([ids + often for ids, often in zip(asked, counts, strict=True)])
        answers = self._exchange.answers(self._answer(received, learning, now, upto_step), asked)
        rows = {name: np.full(len(tables[name].ids), MISSING_ROW) for name in self._maps if name in tables}
        for owner, parts in enumerate(answers):
            for k, part in enumerate(parts):
                if len(part):
                    rows[list(self._maps)[k // 2]][at[owner][k]] = part
        return rows

    def _by_owner(self, spec: TableSpec, table: TableIds, learning: bool) -> list[list[Int64]]:
        """[owner][0: to learn, 1: to look up]: positions in table.ids."""
        world_size = self._exchange.world_size
        positions = np.flatnonzero(table.ids != MISSING_ID)
        look_up_only = (table.counts[positions] == 0) | (not learning)
        if world_size == 1:
            return [[positions[~look_up_only], positions[look_up_only]]]
        block = max(1, len(spec.buckets_of_rank(0, world_size)))
        owner = bucket_of(spec, table.ids[positions]) // block
        key = (2 * owner + look_up_only).astype(np.uint16)
        order = np.argsort(key, kind="stable")
        borders = np.searchsorted(key[order], np.arange(1, 2 * world_size))
        parts = np.split(positions[order], borders)
        return [parts[2 * rank : 2 * rank + 2] for rank in range(world_size)]

    def _answer(
        self, received: list[list[Int64]], learning: dict[str, bool], now: int, upto_step: int | None
    ) -> list[list[Int64]]:
        """received[source]: two lists of ids a table, then one of counts a table. The first are answered."""
        answers: list[list[Int64]] = [[] for _ in received]
        for k, (name, each) in enumerate(self._maps.items()):
            rows = [lists[2 * k] for lists in received]
            if learning[name]:
                rows = each.learn(rows, [lists[2 * len(self._maps) + k] for lists in received], now)
            for source, lists in enumerate(received):
                answers[source] += [rows[source], each.rows_of(lists[2 * k + 1], upto_step)]
        return answers

    def _forget_before(self, step: int) -> None:
        for each in self._maps.values():
            each.forget_before(step)

    def _require(self, step: int) -> None:
        if step not in self._marks:
            raise IdMapError(
                f"id map as of step {step} → steps at hand: {list(self._marks)} → mark each step, ask within {MARKS} "
                "of it"
            )


def _map_of(spec: TableSpec, buckets: range) -> Vocabulary | ManagedMap:
    """Imported where a table has buckets: their inner loops are compiled."""
    if spec.mapping == "managed":
        from embeddings.managed import ManagedMap  # noqa: PLC0415

        return ManagedMap(spec, buckets)
    from embeddings.vocabulary import Vocabulary  # noqa: PLC0415

    return Vocabulary(spec, buckets)


def _held(local: Int64, buckets: int, mine: range) -> Held:
    """This rank's buckets of a tensor [buckets, …]; they are all of it, or none, where there are no others."""
    rest = local.shape[1:]
    chunk = LocalChunk((mine.start, *(0 for _ in rest)), torch.from_numpy(local))
    size = (buckets, *rest)
    return Held(size, torch.int64, (chunk,) if len(local) else (), is_copy=True)


def _local(held: Held) -> Int64:
    """This rank's buckets."""
    if not held.chunks:
        return np.empty((0, *held.size[1:]), np.int64)
    result: Int64 = held.chunks[0].tensor.numpy()
    return result
