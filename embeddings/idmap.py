"""Ids → rows of tables. Row 0 is the missing id's, row 1 is every unknown id's.

hash:       2 + hash(id) mod (rows − 2). Stateless.
identity:   id + 2, unknown outside 0 … rows − 3. Stateless.
vocabulary: an id's bucket is a hash of it; the bucket hands out its rows, at the rank that holds them, to the new ids
            of a step in ascending order, whichever rank saw them. So the map does not depend on the world size. A
            full bucket knows no more ids.
"""

from __future__ import annotations

from collections import deque

import numpy as np
import torch
import torch.distributed as dist

from embeddings.errors import IdMapError
from embeddings.exchange import Exchange
from embeddings.held import Held, LocalChunk
from embeddings.specs import MISSING_ROW, TableSpec
from embeddings.stateless import StatelessMap
from embeddings.tables import table_groups
from embeddings.vocabulary import Vocabulary, bucket_of
from pipelines.batch import Int64, TableIds
from pipelines.schema import MISSING_ID

# Batches are mapped a few steps ahead of being trained; this many can be looked back on.
MARKS = 64


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
        self._vocabularies = {
            name: Vocabulary(spec, spec.buckets_of_rank(rank, world_size))
            for name, spec in specs.items()
            if spec.is_bucketed
        }
        self._marks: deque[tuple[int, dict[str, Int64]]] = deque(maxlen=MARKS)

    def rows_of(self, tables: dict[str, TableIds], train: bool) -> dict[str, Int64]:
        """{table: ids [U], each once} → {table: rows int64 [U]}. Collective when there is a vocabulary: every rank
        calls it as often.

        New ids of a vocabulary get rows if `train` and if some rank counts them at least once (a filler counts 0).
        Distinct ids may share a row: hash collisions, and all unknown ones.
        """
        rows = self._vocabulary_rows(tables, train) if self._vocabularies else {}
        rows |= self._stateless.rows_of({name: table.ids for name, table in tables.items() if name not in rows})
        return {name: rows[name] for name in tables}

    def mark(self, step: int) -> None:
        """Ids up to the batch of `step` are mapped, no later ones. Also to be called at the start and after a load."""
        self._marks.append((step, {name: v.used.copy() for name, v in self._vocabularies.items()}))

    def used_rows(self) -> dict[str, int]:
        """{vocabulary table: rows handed out on this rank, reserved ones among them}."""
        return {name: int(v.used.sum()) for name, v in self._vocabularies.items()}

    def state(self, upto_step: int | None = None) -> dict[str, Held]:
        """The map as of the batch marked `upto_step`, or as it is now. Copies; needs no communication.

        "TABLE/ids": int64 [buckets, rows per bucket], "TABLE/used": int64 [buckets]; this rank holds its whole buckets.
        Raises IdMapError when that step is no longer at hand.
        """
        used = self._used_at(upto_step)
        state = {}
        for name, vocabulary in self._vocabularies.items():
            slots = np.arange(vocabulary.spec.rows_per_bucket)
            ids = np.where(slots < used[name][:, None], vocabulary.id_of_row, MISSING_ID)
            state[f"{name}/ids"] = _held(ids, vocabulary)
            state[f"{name}/used"] = _held(used[name].copy(), vocabulary)
        return state

    def load_state(self, state: dict[str, Held]) -> None:
        """Takes over what was read into this mapper's own `state()`.

        Raises IdMapError when a vocabulary is missing or has other buckets; nothing is changed then.
        """
        loaded = {}
        for name, vocabulary in self._vocabularies.items():
            if f"{name}/ids" not in state or f"{name}/used" not in state:
                raise IdMapError(
                    f"table {name!r} has no saved vocabulary → it is of another run → start from one that has it"
                )
            shape = (vocabulary.spec.buckets, vocabulary.spec.rows_per_bucket)
            if state[f"{name}/ids"].size != shape:
                raise IdMapError(
                    f"table {name!r}: saved as {list(state[f'{name}/ids'].size)} (buckets, rows of each), configured "
                    f"{list(shape)} → both are fixed at birth → set rows and buckets as they were"
                )
            loaded[name] = [_local(state[f"{name}/{part}"]) for part in ("ids", "used")]
        for name, (ids, used) in loaded.items():
            self._vocabularies[name].load(ids, used)
        self._marks.clear()

    def _vocabulary_rows(self, tables: dict[str, TableIds], train: bool) -> dict[str, Int64]:
        """Two lists a table and owner travel: ids that may be admitted, and ids that are only looked up."""
        none = TableIds(np.empty(0, np.int64), np.empty(0, np.int64))
        present = {name: np.flatnonzero(tables.get(name, none).ids != MISSING_ID) for name in self._vocabularies}
        asked_at: list[list[Int64]] = [[] for _ in range(self._exchange.world_size)]
        asked: list[list[Int64]] = [[] for _ in range(self._exchange.world_size)]
        for name, positions in present.items():
            table = tables.get(name, none)
            for owner, parts in enumerate(self._by_owner(self.specs[name], table, positions, train)):
                asked_at[owner] += parts
                asked[owner] += [table.ids[part] for part in parts]
        received = self._exchange.lists(asked)
        answers = self._exchange.answers(self._answer(received), asked)
        rows = {name: np.full(len(tables[name].ids), MISSING_ROW) for name in self._vocabularies if name in tables}
        for owner, parts in enumerate(answers):
            for k, part in enumerate(parts):
                if len(part):
                    rows[list(present)[k // 2]][asked_at[owner][k]] = part
        return rows

    def _by_owner(self, spec: TableSpec, table: TableIds, positions: Int64, train: bool) -> list[list[Int64]]:
        """[owner][0: to admit, 1: to look up]: positions in table.ids."""
        world_size = self._exchange.world_size
        block = max(1, len(spec.buckets_of_rank(0, world_size)))
        owner = bucket_of(spec, table.ids[positions]) // block
        look_up_only = (table.counts[positions] == 0) | (not train)
        key = 2 * owner + look_up_only
        order = np.argsort(key, kind="stable")
        borders = np.searchsorted(key[order], np.arange(1, 2 * world_size))
        parts = np.split(positions[order], borders)
        return [parts[2 * rank : 2 * rank + 2] for rank in range(world_size)]

    def _answer(self, received: list[list[Int64]]) -> list[list[Int64]]:
        for k, vocabulary in enumerate(self._vocabularies.values()):
            vocabulary.admit(np.unique(np.concatenate([lists[2 * k] for lists in received])))
        vocabularies = list(self._vocabularies.values())
        return [[vocabularies[k // 2].rows_of(ids) for k, ids in enumerate(lists)] for lists in received]

    def _used_at(self, step: int | None) -> dict[str, Int64]:
        if step is None:
            return {name: v.used for name, v in self._vocabularies.items()}
        for marked, used in self._marks:
            if marked == step:
                return used
        at_hand = [marked for marked, _ in self._marks]
        raise IdMapError(
            f"id map as of step {step} → steps at hand: {at_hand} → mark each step, save within {MARKS} of it"
        )


def _held(local: Int64, vocabulary: Vocabulary) -> Held:
    """This rank's buckets of a tensor [buckets, …]; they are all of it, or none, where there are no others."""
    rest = local.shape[1:]
    chunk = LocalChunk((vocabulary.buckets.start, *(0 for _ in rest)), torch.from_numpy(local))
    size = (vocabulary.spec.buckets, *rest)
    return Held(size, torch.int64, (chunk,) if len(local) else (), is_copy=True)


def _local(held: Held) -> Int64:
    """This rank's buckets."""
    if not held.chunks:
        return np.empty((0, *held.size[1:]), np.int64)
    result: Int64 = held.chunks[0].tensor.numpy()
    return result
