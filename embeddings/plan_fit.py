"""Whether a plan fits, and what would make it fit: every remedy is planned, and its effect told in bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from embeddings.errors import PlanDoesNotFitError
from embeddings.plan_choice import Cluster, evenest, shares_to_try
from embeddings.plan_report import PlanReport, human_bytes
from embeddings.specs import RESERVED_ROWS, TableSpec

LARGEST_TABLES = 3
NAMED_TABLES = 4
# Ranks are tried up to so many times those that would do if memory could be used to the byte.
MOST_TIMES = 8

Specs = dict[str, TableSpec]


@dataclass(frozen=True)
class Limits:
    """Bytes of a rank for tables: of its device, and of its part of the host (0 = not asked)."""

    device: int
    host: int = 0


def check_fit(report: PlanReport, limits: Limits, cluster: Cluster) -> None:
    """Raises PlanDoesNotFitError when some rank's tables take more than there is: which, by how much, what would help.

    cluster: of one group of ranks, its memory the limit of the device.
    """
    problems = []
    for place, values, limit in (
        ("", report.load.device, limits.device),
        (" on the host", report.load.host, limits.host),
    ):
        over = [rank for rank, size in enumerate(values) if limit and size > limit]
        if over:
            fullest = max(over, key=lambda rank: (values[rank], -rank))
            others = f" (and {len(over) - 1} more rank(s))" if len(over) > 1 else ""
            problems.append(
                f"rank {fullest}{others}: tables take {human_bytes(values[fullest])} of {human_bytes(limit)}{place}, "
                f"{human_bytes(values[fullest] - limit)} too much ({_largest(report, fullest)}) → every rank's tables "
                f"must fit → {'; '.join(Remedies(report, limits, cluster).lines(bool(place)))}"
            )
    if problems:
        raise PlanDoesNotFitError(problems)


def _largest(report: PlanReport, rank: int) -> str:
    largest = sorted(report.tables, key=lambda table: table.bytes[rank], reverse=True)[:LARGEST_TABLES]
    return ", ".join(f"{table.name} {human_bytes(table.bytes[rank])}" for table in largest if table.bytes[rank])


class Remedies:
    """Each is tried on the largest tables first, on as few of them as are enough, with every table row-wise that may
    be."""

    def __init__(self, report: PlanReport, limits: Limits, cluster: Cluster) -> None:
        self._specs, self._limits, self._cluster = report.specs, limits, cluster
        sizes = {table.name: sum(table.bytes) for table in report.tables}
        self._order = sorted(sizes, key=lambda name: (-sizes[name], name))
        self._load = report.load

    def lines(self, host: bool = False) -> list[str]:
        """What would help, those that are enough first. host: it is the host's memory that is short."""
        tried = [self._row_wise(), self._dtype(), self._optimizer()]
        tried += [self._on_device() if host else self._uvm()]
        found = [remedy for remedy in tried if remedy is not None]
        found += [self._fewer_rows(), self._more_ranks()]
        found.sort(key=lambda remedy: not remedy[1])
        return [text for text, _ in found]

    def _row_wise(self) -> tuple[str, bool] | None:
        return self._change(
            "sharding = 'row_wise'",
            lambda spec: replace(spec, sharding="row_wise", ranks=()) if spec.sharding != "row_wise" else None,
        )

    def _dtype(self) -> tuple[str, bool] | None:
        return self._change("dtype = 'fp16'", lambda s: replace(s, dtype="fp16") if s.dtype == "fp32" else None)

    def _optimizer(self) -> tuple[str, bool] | None:
        smaller = {"adagrad": "rowwise_adagrad", "adam": "rowwise_adam"}
        found = next((smaller[s.optimizer] for s in self._specs.values() if s.optimizer in smaller), "")
        return self._change(
            f"optimizer = '{found}'",
            lambda s: replace(s, optimizer=found) if smaller.get(s.optimizer) == found else None,  # type: ignore[arg-type]
        )

    def _uvm(self) -> tuple[str, bool] | None:
        if self._cluster.device != "cuda":
            return None
        return self._change(
            "kernel = 'fused_uvm_caching'",
            lambda s: replace(s, kernel="fused_uvm_caching") if s.kernel in ("auto", "fused") else None,
        )

    def _on_device(self) -> tuple[str, bool] | None:
        return self._change("kernel = 'fused'", lambda s: replace(s, kernel="fused") if "uvm" in s.kernel else None)

    def _change(self, what: str, change: Callable[[TableSpec], TableSpec | None]) -> tuple[str, bool] | None:
        """A remedy and whether it is enough; None where no table can be changed so, or nothing is won by it."""
        changed = {name: changed for name in self._order if (changed := change(self._specs[name])) is not None}
        if not changed:
            return None
        for count in shares_to_try(len(changed))[1:]:
            names = list(changed)[:count]
            needed = self._needed(self._specs | {name: changed[name] for name in names})
            if self._fits(needed):
                break
        freed = float(self._load.device.max()) - needed[0]
        hosted = needed[1] - float(self._load.host.max())
        if max(freed, -hosted) <= 0:
            return None
        enough = self._fits(needed)
        on_host = f", for {human_bytes(hosted)} of the host's" if hosted > 0 else ""
        won = human_bytes(freed if freed > 0 else -hosted)
        which = f"for {_named(names)}" if len(names) < len(self._specs) else "for all tables"
        return f"{what} {which} frees {won} a rank{on_host}, {'enough' if enough else 'not enough alone'}", enough

    def _fewer_rows(self) -> tuple[str, bool]:
        """Of the fewest of the largest tables with which it works: how many they may have."""
        counts = shares_to_try(len(self._order))[1:]
        for count, share in [(count, share) for share in (0.5, 0.0) for count in counts]:
            names = self._order[:count]
            if self._fits(self._needed(self._cut(names, share))):  # half of few tables' rows, rather than all of fewer
                break
        low, high = 0.0, 1.0
        for _ in range(10):
            middle = (low + high) / 2
            low, high = (middle, high) if self._fits(self._needed(self._cut(names, middle))) else (low, middle)
        cut = self._cut(names, low)
        if not self._fits(self._needed(cut)):
            return "fewer rows do not help: the smallest tables are too wide", False
        if len(names) > NAMED_TABLES:
            return f"fewer rows: {low:.0%} of those of the {len(names)} largest tables, enough", True
        rows = ", ".join(f"{name} rows = {cut[name].rows} (now {self._specs[name].rows:,})" for name in names)
        return f"fewer rows: {rows}, enough", True

    def _cut(self, names: list[str], share: float) -> Specs:
        return self._specs | {name: _with_rows(self._specs[name], share) for name in names}

    def _more_ranks(self) -> tuple[str, bool]:
        def fits(world_size: int) -> bool:
            return self._fits(self._needed(self._specs, world_size))

        held = ((self._load.device, self._limits.device), (self._load.host, self._limits.host))
        least = max(1, *(-(-int(values.sum()) // limit) for values, limit in held if limit))
        low, high = least - 1, least
        while not fits(high):
            low, high = high, 2 * high
            if high > MOST_TIMES * least:
                return f"more ranks do not help, up to {low}", False
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if fits(middle) else (middle, high)
        return f"at least {high} ranks that share the tables, enough", True

    def _needed(self, specs: Specs, world_size: int = 0) -> tuple[float, float]:
        return evenest(specs, replace(self._cluster, world_size=world_size or self._cluster.world_size))

    def _fits(self, needed: tuple[float, float]) -> bool:
        device, host = needed
        in_device = not self._limits.device or device <= self._limits.device
        return in_device and (not self._limits.host or host <= self._limits.host)


def _with_rows(spec: TableSpec, share: float) -> TableSpec:
    """With so large a share of its rows, whole buckets where it has them, but never fewer than it needs."""
    if spec.is_bucketed:
        return replace(spec, rows=spec.buckets * max(RESERVED_ROWS + 1, int(spec.rows_per_bucket * share)))
    return replace(spec, rows=max(RESERVED_ROWS + 1, int(spec.rows * share)))


def _named(names: list[str]) -> str:
    more = f" and {len(names) - NAMED_TABLES} more" if len(names) > NAMED_TABLES else ""
    return ", ".join(names[:NAMED_TABLES]) + more
