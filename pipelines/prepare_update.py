"""What a `data prepare` of a folder that is there has to read, and which of its segments to make.

new files, later days    → added, from the users' tails after the last day; the log before is not read
--refresh                → from the first day whose events changed, every later one is made, since histories reach
                           over days; days whose labels became final are made; what comes out equal stays as it is
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.errors import DataError
from pipelines.prepare_events import DAY_MICROS, micros
from pipelines.prepare_job import Job, Unit
from pipelines.prepare_read import read_unit
from pipelines.storage import stat_files

FileFacts = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Update:
    """read: files of the log. after: the day whose saved tails stand for all before; None = from the beginning.

    write: days to be made, and all from write_from on; None = no such day. states: whether tails are saved anew. notes:
    what a person should know. nothing: whether there is nothing to be done.
    """

    read: frozenset[str]
    after: int | None = None
    write: frozenset[int] = frozenset()
    write_from: int | None = -(2**62)
    states: bool = True
    notes: tuple[str, ...] = ()
    nothing: bool = False


class There:
    """What is there. manifest: `_prepare.json`. segments: {day or other code: its `_segment.json`}."""

    def __init__(self, manifest: dict[str, Any], segments: dict[int, dict[str, Any]]) -> None:
        self.manifest, self.segments = manifest, segments
        self.partitions, self.as_of = int(manifest["partitions"]), int(manifest["as_of"])
        self.newest, self.through = int(manifest["newest"]), manifest["through"]
        self.states: list[int] = sorted(manifest["states"])
        self.files: FileFacts = {path: _with_days(facts) for path, facts in manifest["files"].items()}


def file_facts(paths: Sequence[str]) -> FileFacts:
    """{path: {"bytes", "modified"}}: by these a file is known to be the same."""
    found = zip(paths, stat_files(paths), strict=True)
    return {path: {"bytes": file.size, "modified": file.changed} for path, file in found if file is not None}


def differences(there: There, now: FileFacts) -> tuple[set[str], set[str], set[str]]:
    """Files of the log that are new, changed, gone."""
    before = there.files
    changed = {p for p in now.keys() & before.keys() if any(now[p][k] != before[p][k] for k in ("bytes", "modified"))}
    return now.keys() - before.keys(), changed, before.keys() - now.keys()


def plan_addition(job: Job, there: There, now: FileFacts) -> Update:
    """New files' later days. Raises DataError where segments are not days."""
    new, changed, gone = differences(there, now)
    notes = []
    if changed or gone:
        notes.append(f"{len(changed)} files of the log changed and {len(gone)} are gone: --refresh takes that up")
    if not new:
        return Update(frozenset(), notes=tuple(notes), nothing=True)
    if job.settings.split != "time":
        raise DataError(
            f"data.prepare.log has {len(new)} new files and split is '{job.settings.split}' → only days are added to "
            "what is there → use --refresh, or another folder"
        )
    return Update(frozenset(new), after=there.through, notes=tuple(notes))


def plan_refresh(
    job: Job,
    there: There,
    now: FileFacts,
    scanned: Mapping[str, Mapping[int, int]],
    windows: Mapping[str, int],
    as_of: int,
) -> Update:
    """scanned: {new or changed file: {day: events}}."""
    new, changed, gone = differences(there, now)
    if job.settings.split != "time":
        labels = bool(windows) and as_of > there.as_of
        return Update(frozenset(now), states=False, nothing=not (new or changed or gone or labels))
    dirty = {day for path in new | changed for day in scanned[path]}
    dirty |= {day for path in changed | gone for day in there.files[path]["days"]}
    dirty |= {day for facts in there.files.values() for day in facts.get("late", {})}
    final = frozenset(day for day, segment in there.segments.items() if labels_changed(segment, windows, as_of))
    if not dirty and not final:
        return Update(frozenset(), nothing=True)
    first = min(dirty | final)
    after = max((day for day in there.states if day < first), default=None)
    notes: tuple[str, ...] = ()
    if after is None and first > min(there.segments, default=first):
        notes = ("no saved tails are as old as the first changed segment: the whole log is read",)
    days = {path: set(scanned[path]) if path in scanned else set(there.files[path]["days"]) for path in now}
    read = frozenset(path for path in now if after is None or any(day > after for day in days[path]))
    return Update(read, after, final, min(dirty, default=None), bool(dirty), notes)


def labels_changed(segment: Mapping[str, Any], windows: Mapping[str, int], as_of: int) -> bool:
    """Whether some label of a segment may be final at `as_of` that was not when the segment was made."""
    return any(
        segment["first"] + window <= as_of and segment["last"] + window > segment["as_of_micros"]
        for window in windows.values()
    )


def scan_days(job: Job, unit: Unit) -> dict[str, Any]:
    """{"path", "days": {day: events}, "last": newest time} of a unit of the log."""
    table, _ = read_unit(job, unit)
    time_E = micros(table[job.time], job.schema.time_unit)
    days, counts = np.unique(time_E // DAY_MICROS, return_counts=True)
    found = dict(zip(days.tolist(), counts.tolist(), strict=True))
    return {"path": unit.path, "days": found, "last": int(time_E.max(initial=0))}


def _with_days(facts: dict[str, Any]) -> dict[str, Any]:
    """JSON makes strings of keys."""
    counts = {key: facts[key] for key in ("days", "late") if key in facts}
    return facts | {key: {int(day): number for day, number in days.items()} for key, days in counts.items()}
