"""Health of the tables on sampled steps: gathered where a step has what is needed, reduced where the loop reports.

    the feed maps the ids of step s      → mapped(s): counts of its global batch            one exchange of its ids
    the forward of step s                → norms of the rows looked up                      a hook on `assemble`
    the loop has done step s             → trained(s)
    the loop reports                     → take(): figures of the steps sampled since       two small all-reduces

Nothing of it changes what is trained. Steps in between cost a comparison.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from embeddings.exchange import Exchange
from embeddings.health import BatchCounter, BatchCounts, FlatIds, TableFigures, figures, flat, largest
from embeddings.held_tables import held_tables
from embeddings.row_sample import RowSample
from embeddings.tables import rows_by_table
from pipelines.batch import Array, Float64, Int64, TableIds
from trainer.assembly import Assembly
from trainer.runtime import Runtime


@dataclass
class _Sampled:
    """A step whose ids are mapped.

    ids: on this rank. flow [3, T]: rows handed out by then; ids given a row and ids that lost theirs since the sample
    before, on this rank. norms {table: [its U]}: once its rows are looked up.
    """

    ids: FlatIds
    counts: BatchCounts
    flow: Float64
    norms: dict[str, torch.Tensor] = field(default_factory=dict)


class _Totals:
    """Of this rank and the steps sampled since the last report, each [T].

    batch: what BatchCounts counts, but for the most frequent ids, whose maximum over ranks is taken a step at a time.
    norms: Σ occurrences · norm. flow: as of _Sampled, of all the steps.
    """

    def __init__(self, count: int) -> None:
        self.batch = {name: np.zeros(count) for name in ("occurrences", "unknown", "ids", "colliding")}
        self.hottest: list[Int64] = []
        self.norms, self.norm_max = np.zeros((2, count))
        self.flow = np.zeros((3, count))


class TableHealth:
    """every: steps between two samples. Collective, but for the hook: every rank makes the same calls in the same
    order."""

    def __init__(self, every: int, assembly: Assembly, runtime: Runtime) -> None:
        self._every, self._assembly, self._runtime = every, assembly, runtime
        self._specs, self._names = assembly.specs, tuple(assembly.specs)
        self._counter = BatchCounter(self._specs, Exchange(runtime.control))
        self._rows: RowSample | None = None
        self._ahead: dict[int, _Sampled] = {}  # mapped, not yet trained
        assembly.module.assemble.register_forward_pre_hook(self._looked_up)
        self._total = _Totals(len(self._names))

    def start(self) -> None:
        """Before the first ids are mapped: admissions count from here."""
        self._flow = self._flow_so_far()
        self._ahead.clear()
        self._total = _Totals(len(self._names))

    def mapped(self, step: int, tables: Mapping[str, TableIds], rows: Mapping[str, Int64]) -> None:
        """The ids of the batch that `step` will train have these rows."""
        if step % self._every:
            return
        ids = flat(self._names, tables, rows)
        before, self._flow = self._flow, self._flow_so_far()
        flow = np.concatenate([self._flow[:1], (self._flow - before)[1:]])
        self._ahead[step] = _Sampled(ids, self._counter.count(ids), flow)

    def trained(self, step: int) -> None:
        """`step` is done."""
        sampled = self._ahead.pop(step, None)
        if sampled is None:
            return
        total, count = self._total, len(self._names)
        total.flow = np.concatenate([sampled.flow[:1], (total.flow + sampled.flow)[1:]])
        for key in total.batch:
            total.batch[key] += getattr(sampled.counts, key)
        total.hottest.append(sampled.counts.hottest)
        norms = torch.cat([sampled.norms[name] for name in self._names]).double().cpu().numpy()
        table, counts = sampled.ids.table, sampled.ids.counts
        total.norms += np.bincount(table, weights=norms * counts, minlength=count)
        total.norm_max = np.maximum(total.norm_max, largest(table, np.where(counts > 0, norms, 0.0), count))

    def take(self) -> dict[str, TableFigures]:
        """Of all ranks, on every rank; empty where no step was sampled since the last call."""
        total = self._total
        if not total.hottest:
            return {}
        if self._rows is None:  # at the first report, not at start-up: the optimizers' states are all there now
            self._rows = RowSample(held_tables(self._assembly.model, self._specs), self._specs)
        sampled, untouched = self._rows.counts()
        sums: dict[str, Array] = total.batch | {
            "norms": total.norms,
            **dict(zip(("used", "admissions", "evictions"), total.flow, strict=True)),
            "sampled": sampled,
            "untouched": untouched,
        }
        summed = self._reduced(np.stack([*sums.values()]), dist.ReduceOp.SUM)
        most = self._reduced(np.stack([total.norm_max, *total.hottest]), dist.ReduceOp.MAX)
        self._total = _Totals(len(self._names))
        return figures(
            self._specs, dict(zip(sums, summed, strict=True)) | {"norm_max": most[0], "hottest": most[1:].sum(0)}
        )

    def _looked_up(self, module: torch.nn.Module, arguments: tuple[Any, ...]) -> None:
        """Before the tower of a training step: rows {group: [ΣU, width]}, in the order of its tables and their ids."""
        rows, batch = arguments
        sampled = self._ahead.get(batch.info.step) if module.training else None
        if sampled is not None:
            with torch.no_grad():
                norms = {group: torch.linalg.vector_norm(found.float(), dim=1) for group, found in rows.items()}
            sampled.norms = rows_by_table(norms, batch.kjts)

    def _flow_so_far(self) -> Float64:
        used, flows = self._assembly.mapper.used_rows(), self._assembly.mapper.flows()
        return np.array([(used.get(name, 0), *flows.get(name, (0, 0))) for name in self._names], np.float64).T

    def _reduced(self, values: Float64, op: Any) -> Float64:
        """Over all ranks: counts are whole numbers below 2^53, so the order does not matter."""
        shared = torch.from_numpy(values)
        if self._runtime.world_size > 1:
            dist.all_reduce(shared, op=op, group=self._runtime.control)
        result: Float64 = shared.numpy()
        return result
