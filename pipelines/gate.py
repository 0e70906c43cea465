"""What changed from segments to the next one, and whether `[data.gate]` lets it pass. Works on profiles alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from pipelines.config import Gate
from pipelines.gate_distance import Share, psi, unknown_share
from pipelines.profile_format import ColumnProfile, SegmentProfile
from pipelines.schema import Column, Schema

ERRORS = 3.0  # standard errors by which a figure of a sample must be beyond its limit
ROOM = 1.5  # a share that was there already may grow by half, and by the increase allowed


@dataclass(frozen=True)
class Finding:
    """One figure of a segment beside those of the segments before.

    where: "" (the segment), "task NAME" or "column NAME". what: the figure. before: lowest and highest. now: this
    segment's. severity: its distance as a share of what the rule allows, sampling error included; above 1 it trips.
    rule: the key of [data.gate]; "" = shown, never judged. limit: the key's value. unit: "%" for shares.
    """

    where: str
    what: str
    before: tuple[float, float] | None
    now: float
    severity: float
    rule: str = ""
    limit: float = math.inf
    unit: str = "%"

    @property
    def tripped(self) -> bool:
        """The gate would not let it pass."""
        return bool(self.rule) and self.severity > 1

    def said(self, value: float) -> str:
        """A figure as people read it."""
        return f"{value:.2%}" if self.unit == "%" else f"{value:,.4g}"

    def before_said(self) -> str:
        """The figure of the segments before."""
        if self.before is None:
            return ""
        low, high = map(self.said, self.before)
        return low if low == high else f"{low} … {high}"

    def line(self, segment: str, references: int) -> str:
        """value → rule → remedy."""
        where = f"{self.where}: " if self.where else ""
        before = f", {self.before_said()} in the {references} before" if self.before is not None else ""
        key = f"data.gate.{self.rule}"
        if self.where.startswith("column ") and self.rule not in ("min_coverage",):
            own = f"data.gate.columns.{self.where.removeprefix('column ').strip(chr(39))}.{self.rule}"
        else:
            own = key
        return (
            f"segment '{segment}': {where}{self.what} is {self.said(self.now)}{before} → {key} = {self.limit:g}"
            f" → mend the segment, leave it out by data.exclude, raise {own}, or set data.gate.on_fail"
        )


def judge(
    now: SegmentProfile, previous: Sequence[SegmentProfile], gate: Gate, schema: Schema | None = None
) -> list[Finding]:
    """Every figure the rules speak of, the most severe first; none without a segment before.

    previous: the segments before, oldest first; the last `gate.previous` are what `now` is held against, those before
    them tell which share of unknown ids is usual. schema: says which columns are labels and times; None = none.
    """
    references = list(previous[-gate.previous :])
    if not references:
        return []
    findings = [*_rows(now, references, gate), *_tasks(now, references, gate)]
    for name, profile in now.columns.items():
        spec = schema.columns.get(name) if schema else None
        befores = [(ref, ref.columns[name]) for ref in references if name in ref.columns]
        if befores:
            judged = _ColumnJudge(name, spec, profile, now, befores, _rules_of(gate, name))
            findings += judged.findings()
            findings += _unknown(name, now, previous, gate, judged.rule)
    order = {id(finding): place for place, finding in enumerate(findings)}
    return sorted(findings, key=lambda finding: (-finding.severity, order[id(finding)]))


def _rules_of(gate: Gate, name: str) -> Callable[[str], float]:
    own = gate.columns.get(name)

    def rule(key: str) -> float:
        value = getattr(own, key, None) if own is not None else None
        return float(getattr(gate, key, 0.0) if value is None else value)

    return rule


def _over(distance: float, allowed: float) -> float:
    """distance ÷ allowed, never negative; without any room every distance is infinitely far."""
    if distance <= 0 or math.isinf(allowed):
        return 0.0
    return distance / allowed if allowed > 0 else math.inf


def _noise(*shares: Share) -> float:
    """Three standard errors of a difference of shares."""
    return ERRORS * math.sqrt(sum(share.variance for share in shares))


def _rows(now: SegmentProfile, references: list[SegmentProfile], gate: Gate) -> Iterator[Finding]:
    counts = [ref.rows for ref in references]
    low, high = min(counts), max(counts)
    before = (float(low), float(high))
    less, more = _over(low * gate.min_rows_share, now.rows or 0.5), _over(now.rows, high * gate.max_rows_share)
    if less >= more:
        yield Finding("", "number of rows", before, now.rows, less, "min_rows_share", gate.min_rows_share, "")
    else:
        yield Finding("", "number of rows", before, now.rows, more, "max_rows_share", gate.max_rows_share, "")


def _tasks(now: SegmentProfile, references: list[SegmentProfile], gate: Gate) -> Iterator[Finding]:
    for name, task in now.tasks.items():
        befores = [(ref, ref.tasks[name]) for ref in references if name in ref.tasks and ref.tasks[name].labelled]
        if not befores or not task.labelled:
            continue
        rate = Share(task.rate, min(task.labelled, now.users_read))
        rates = [Share(before.rate, min(before.labelled, ref.users_read)) for ref, before in befores]
        low, high = min(rates, key=lambda share: share.value), max(rates, key=lambda share: share.value)
        change = gate.max_label_rate_change
        severity = max(
            _over(rate.value - high.value, high.value * change + _noise(rate, high)),
            _over(low.value - rate.value, low.value * change + _noise(rate, low)),
        )
        before = (low.value, high.value)
        yield Finding(f"task '{name}'", "label rate", before, rate.value, severity, "max_label_rate_change", change)


@dataclass(frozen=True)
class _ColumnJudge:
    """One column against the same one in the segments before."""

    name: str
    spec: Column | None
    profile: ColumnProfile
    now: SegmentProfile
    befores: list[tuple[SegmentProfile, ColumnProfile]]
    rule: Callable[[str], float]

    def findings(self) -> Iterator[Finding]:
        """Of every rule for columns but that of unknown ids."""
        yield from self._coverage()
        if not self.profile.coverage:
            return
        is_label = self.spec is not None and self.spec.role == "label"
        if not is_label:  # labels come late
            for what in ("nulls", "nans", "null_lists"):
                yield from self._nulls(what)
        yield from self._sentinels()
        yield from self._lengths()
        if not is_label and not (self.spec is not None and self.spec.kind == "time"):
            yield from self._values()
            yield from self._psi()

    def _found(self, what: str, before: Sequence[float], now: float, severity: float, key: str, **more: str) -> Finding:
        span = (min(before), max(before))
        return Finding(f"column '{self.name}'", what, span, now, severity, key, self.rule(key), **more)

    def _coverage(self) -> Iterator[Finding]:
        newest = self.befores[-1][1].coverage
        coverage, drop = self.profile.coverage, self.rule("max_coverage_drop")
        what = "share of rows whose file has it"
        yield self._found(what, [newest], coverage, _over(newest - coverage, drop), "max_coverage_drop")
        least = self.rule("min_coverage")
        if coverage < least:
            where, key = f"column '{self.name}'", f"columns.{self.name}.min_coverage"
            yield Finding(where, what, None, coverage, least / coverage if coverage else math.inf, key, least)

    def _increase(self, now: float, befores: Sequence[float], key: str, ordinary: bool = False) -> float:
        """Severity of a share above ROOM times the highest before.

        A share that was there varies from user to user, so users are counted; of a new one rows, unless its value is an
        ordinary one, which a few users may have left out before.
        """
        highest = max(range(len(befores)), key=lambda place: befores[place])
        before, (segment, column) = befores[highest], self.befores[highest]

        def share(value: float, segment: SegmentProfile, column: ColumnProfile) -> Share:
            count = segment.users_read if before or ordinary else segment.rows_read * column.coverage
            return Share(value, min(column.values, round(count)))

        noise = _noise(share(now, self.now, self.profile), share(before, segment, column))
        return _over(now - before, before * (ROOM - 1) + self.rule(key) + noise)

    def _nulls(self, what: str) -> Iterator[Finding]:
        now, befores = getattr(self.profile, what), [getattr(column, what) for _, column in self.befores]
        words = {"nulls": "share of nulls", "nans": "share of NaN", "null_lists": "share of null lists"}[what]
        if now or any(befores):
            severity = self._increase(now, befores, "max_null_increase")
            yield self._found(words, befores, now, severity, "max_null_increase")

    def _sentinels(self) -> Iterator[Finding]:
        for value, share in self.profile.sentinels.items():
            befores = [column.sentinels.get(value, 0.0) for _, column in self.befores]
            severity = self._increase(share, befores, "max_sentinel_increase", ordinary=value == "0")
            yield self._found(f"share of {value}", befores, share, severity, "max_sentinel_increase")

    def _values(self) -> Iterator[Finding]:
        for top in self.profile.top[:8]:
            if top.value in self.profile.sentinels:
                continue
            befores = [_share_of(column, top.value) for _, column in self.befores]
            severity = self._increase(top.share, befores, "max_value_increase")
            if severity > 0.5:  # the rest says nothing
                yield self._found(f"share of {top.value}", befores, top.share, severity, "max_value_increase")

    def _lengths(self) -> Iterator[Finding]:
        befores = [(ref, column.lengths) for ref, column in self.befores if column.lengths]
        now = self.profile.lengths
        if now is None or not befores:
            return
        ref, low = min(befores, key=lambda pair: pair[1].mean)
        noise = ERRORS * math.hypot(
            now.deviation / math.sqrt(max(self.now.users_read, 1)), low.deviation / math.sqrt(max(ref.users_read, 1))
        )
        severity = _over(low.mean - now.mean, low.mean * self.rule("max_length_drop") + noise)
        means = [lengths.mean for _, lengths in befores]
        yield self._found("mean length of lists", means, now.mean, severity, "max_length_drop", unit="")

    def _psi(self) -> Iterator[Finding]:
        distances = []
        for ref, column in self.befores:
            users = min(column.values, ref.users_read), min(self.profile.values, self.now.users_read)
            found = psi(column, self.profile, *users)
            if found is not None:
                distances.append((_over(found.value, self.rule("max_psi") + found.noise), found.value))
        if distances:
            severity, value = min(distances)
            where, limit = f"column '{self.name}'", self.rule("max_psi")
            yield Finding(where, "stability index (PSI)", None, value, severity, "max_psi", limit, "")


def _share_of(column: ColumnProfile, value: str) -> float:
    """Of a value; where only the most frequent are known, a rarer one has at most the share of the last of them."""
    for top in column.top:
        if top.value == value:
            return top.share
    return 0.0 if column.exact_top or not column.top else column.top[-1].share


def _unknown(
    name: str, now: SegmentProfile, previous: Sequence[SegmentProfile], gate: Gate, rule: Callable[[str], float]
) -> Iterator[Finding]:
    """Share of a column's distinct ids that the segments before do not have, beside the same of these segments."""
    column, key = now.columns[name], "max_unknown_increase"
    earlier = [segment.columns[name] for segment in previous if name in segment.columns]
    found = unknown_share(column, earlier[-gate.previous :])
    if found is None:
        return
    befores = []
    for place in range(max(1, len(earlier) - gate.previous), len(earlier)):
        share = unknown_share(earlier[place], earlier[max(0, place - gate.previous) : place])
        if share is not None:
            befores.append(share)
    what, where = "share of distinct ids unknown before", f"column '{name}'"
    if not befores:
        yield Finding(where, what, None, found.value, 0.0)
        return
    highest = max(befores, key=lambda share: share.value)
    severity = _over(found.value - highest.value, rule(key) + _noise(found, highest))
    span = (min(share.value for share in befores), highest.value)
    yield Finding(where, what, span, found.value, severity, key, rule(key))
