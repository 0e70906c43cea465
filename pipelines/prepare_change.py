"""A prepared folder is created, added to, or refreshed: what is made, and what of it takes whose place."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipelines.errors import DataError
from pipelines.prepare_build import Shuffled, build, shuffle
from pipelines.prepare_events import DAY_MICROS
from pipelines.prepare_job import Job
from pipelines.prepare_labels import show_time, windows_of
from pipelines.prepare_output import (
    MANIFEST,
    NEW,
    SEGMENT_FILE,
    STATE,
    commit,
    read_manifest,
    read_segments,
    write_json,
)
from pipelines.prepare_ray import run_tasks
from pipelines.prepare_report import PrepareReport, SegmentReport
from pipelines.prepare_split import segment_folder
from pipelines.prepare_update import (
    FileFacts,
    There,
    Update,
    differences,
    file_facts,
    labels_changed,
    plan_addition,
    plan_refresh,
    scan_days,
)
from pipelines.prepare_work import Work

FORMAT = 1
FREE = {"log", "manifest", "memory_mb", "as_of", "keep_states", "partitions"}  # what is no matter of what rows hold
Segments = dict[str, dict[str, Any]]


def create(job: Job, folder: Path, as_of: int | None, *, started: float) -> PrepareReport:
    """All segments of the log, in an empty folder."""
    facts = _facts(job)
    shuffled = shuffle(job, Update(frozenset(facts)), facts, (), job.settings.partitions)
    reading = shuffled.reading
    moment = reading.last if as_of is None else as_of
    states = _states(job, reading.days)
    work, parts = build(shuffled, folder, moment, states, job.settings.partitions)
    files = {path: facts[path] | reading.files.get(path, {"events": 0, "days": {}}) for path in facts}
    segments = _describe(work, parts, files, {})
    for name, info in segments.items():
        write_json(folder / name / SEGMENT_FILE, info)
    write_json(folder / MANIFEST, _manifest(job, work, files, moment, reading.days, states, reading.last))
    return _report(work, shuffled, parts, [_segment_report(job, i, "new") for i in segments.values()], started)


def change(
    job: Job, out: Path, as_of: int | None, start_ray: Callable[[], None], *, refresh: bool, started: float
) -> PrepareReport:
    """Adds the days that are new; with `refresh` makes anew what changed. Raises DataError where the settings did."""
    segments = read_segments(out)
    there = There(read_manifest(out), {info["code"]: info for info in segments.values()})
    _check_same(job, there, out)
    facts, windows = _facts(job), windows_of(job.settings)
    latest = max([there.as_of, *(info["as_of_micros"] for info in segments.values())])
    if as_of is not None and as_of < latest:
        raise DataError(
            f"as_of {show_time(as_of)} is before {show_time(latest)}, that of segments in '{out}' → what was known is "
            "not forgotten → name a later one, or prepare another folder"
        )
    newest = there.newest
    if refresh:
        start_ray()
        scanned = _scan(job, there, facts)
        newest = max([newest, *(last for _, last in scanned.values())])
        moment = max(latest, newest) if as_of is None else as_of
        update = plan_refresh(job, there, facts, {path: days for path, (days, _) in scanned.items()}, windows, moment)
        notes = list(update.notes)
    else:
        update = plan_addition(job, there, facts)
        moment = latest if as_of is None else as_of
        notes = [*update.notes, *_pending(there, windows, moment)]
    if update.nothing:
        return _nothing(job, there, notes, moment, started)
    start_ray()
    shuffled = shuffle(job, update, facts, _tails(out, job, update.after), there.partitions)
    newest = max(newest, shuffled.reading.last)
    moment = max(moment, newest) if as_of is None else as_of
    changed = _Changed(job, out, there, update, shuffled, refresh)
    return changed.carry_out(facts, moment, newest, notes, started)


@dataclass(frozen=True)
class _Changed:
    """A folder that is there, and the events that change it."""

    job: Job
    out: Path
    there: There
    update: Update
    shuffled: Shuffled
    refresh: bool

    def carry_out(self, facts: FileFacts, as_of: int, newest: int, notes: list[str], started: float) -> PrepareReport:
        """Makes the segments below `_new`, and swaps in those that differ."""
        files = self._files(facts)
        days = _days(files)
        wanted = _states(self.job, days)
        after = self.update.after
        makes = [day for day in wanted if after is None or day > after] if self.update.states else []
        work = replace(self.shuffled.work, partitions=self.there.partitions)
        parts: list[dict[str, Any]] = []
        if self.shuffled.reading.days or self.job.settings.split != "time":
            work, parts = build(self.shuffled, self.out / NEW, as_of, makes, self.there.partitions)
        old = {info["segment"]: info for info in self.there.segments.values()}
        made = _describe(replace(work, as_of=as_of), parts, files, old)
        same = {name for name, info in made.items() if name in old and old[name]["sha256"] == info["sha256"]}
        gone = [name for name, info in old.items() if self.refresh and work.writes(info["code"]) and name not in made]
        for name in made.keys() - same:
            write_json(self.out / NEW / name / SEGMENT_FILE, made[name])
        states = wanted if self.update.states else self.there.states
        kept = [segment_folder(self.job, day) for day in states]
        if self.update.states:  # a tail of before stands where nothing before it changed
            valid = {day for day in self.there.states if after is None or day <= after} if self.refresh else set(states)
            states = [day for day in states if day in valid or day in makes]
        journal = {
            "put": {name: info["version"] for name, info in made.items() if name not in same},
            "drop": gone,
            "touch": {name: made[name] for name in same},
            "states": {"put": [segment_folder(self.job, day) for day in makes], "keep": kept},
            "manifest": _manifest(self.job, work, files, as_of, days, states, newest),
        }
        commit(self.out, journal)
        reports = [
            _segment_report(self.job, info, "unchanged" if name in same else "rewritten" if name in old else "new")
            for name, info in made.items()
        ]
        reports += [
            _segment_report(self.job, old[name] | {"rows": 0, "supervised": 0, "labels": {}}, "removed")
            for name in gone
        ]
        return _report(work, self.shuffled, parts, reports, started, tuple(notes), addition=not self.refresh)

    def _files(self, facts: FileFacts) -> FileFacts:
        """Every file of the log that is known from now on. What changed or is gone stays known as it was, until a
        refresh."""
        reading = self.shuffled.reading
        read = {}
        for path in self.update.read:
            read[path] = facts[path] | reading.files.get(path, {"events": 0, "days": {}})
            if path in reading.late and not self.refresh:
                read[path]["late"] = reading.late[path]
        before = {path: info for path, info in self.there.files.items() if path in facts or not self.refresh}
        return before | read


def _facts(job: Job) -> FileFacts:
    return file_facts(list(dict.fromkeys(unit.path for unit in job.units)))


def _days(files: FileFacts) -> set[int]:
    """Days of which events are in rows or histories."""
    return {day for info in files.values() for day in info["days"] if day not in info.get("late", {})}


def _states(job: Job, days: Iterable[int]) -> list[int]:
    """Days after which tails are to be there."""
    longest = max(windows_of(job.settings).values(), default=0)
    number = job.settings.keep_states or -(-longest // DAY_MICROS) + 3
    return sorted(days)[-number:] if job.settings.split == "time" else []


def _tails(out: Path, job: Job, after: int | None) -> list[str]:
    if after is None:
        return []
    return sorted(str(path) for path in (out / STATE / segment_folder(job, after)).glob("part-*.arrow"))


def _scan(job: Job, there: There, facts: FileFacts) -> dict[str, tuple[dict[int, int], int]]:
    """{new or changed file: events of each day, and the newest time}."""
    new, changed, _ = differences(there, facts)
    paths = new | changed if job.settings.split == "time" else set()
    units = [unit for unit in job.units if unit.path in paths]
    found: dict[str, tuple[dict[int, int], int]] = {path: ({}, 0) for path in paths}
    for answer in run_tasks(lambda index: scan_days(job, units[index]), len(units), "looking at changed files"):
        days, last = found[answer["path"]]
        more = {int(day): number for day, number in answer["days"].items()}
        found[answer["path"]] = (
            {day: days.get(day, 0) + more.get(day, 0) for day in days | more},
            max(last, answer["last"]),
        )
    return found


def _pending(there: There, windows: Mapping[str, int], as_of: int) -> Iterable[str]:
    final = [info["segment"] for info in there.segments.values() if labels_changed(info, windows, as_of)]
    if final:
        yield f"labels of {len(final)} segments, first {final[0]}, may be final by now: --refresh fills them in"


def _settings(job: Job) -> dict[str, Any]:
    """All that decides what rows hold, as JSON."""
    schema = job.schema.model_dump(mode="json", exclude={"file", "tasks"})
    columns = {column.name: str(column.type) for column in job.log_schema}
    return {"schema": schema, "prepare": job.settings.model_dump(mode="json", exclude=FREE), "log_columns": columns}


def _text(settings: dict[str, Any], part: str, key: str) -> str:
    return json.dumps(settings[part].get(key))[:200]


def _check_same(job: Job, there: There, out: Path) -> None:
    """Raises DataError naming each setting that is no longer what the segments were made with."""
    now, before = json.loads(json.dumps(_settings(job))), there.manifest["settings"]
    problems = [
        f"{part}.{key} is {_text(now, part, key)}, and was {_text(before, part, key)} in '{out}' → segments of one "
        "folder are made alike → set it back, or prepare another folder"
        for part in now
        for key in sorted(now[part].keys() | before[part].keys())
        if now[part].get(key) != before[part].get(key)
    ]
    if job.settings.partitions not in (0, there.partitions):
        problems.append(
            f"data.prepare.partitions is {job.settings.partitions} → '{out}' was born with {there.partitions} → set it "
            "back, or prepare another folder"
        )
    if problems:
        raise DataError(problems)


def _describe(work: Work, parts: list[dict[str, Any]], files: FileFacts, old: Segments) -> Segments:
    """{folder: its `_segment.json`}, in name order."""
    found: Segments = {}
    for place, part in enumerate(parts):
        for name, file in part["segments"].items():
            info = found.setdefault(name, {"rows": 0, "supervised": 0, "users": 0, "labels": {}, "parts": []})
            info["code"] = file["code"]
            info["first"] = min(info.get("first", file["first"]), file["first"])
            info["last"] = max(info.get("last", file["last"]), file["last"])
            info["rows"] += file["rows"]
            info["supervised"] += file["supervised"]
            info["users"] += file["users"]
            for label, counts in file["labels"].items():
                before = info["labels"].get(label, [0, 0])
                info["labels"][label] = [a + b for a, b in zip(before, counts, strict=True)]
            fact = {key: file[key] for key in ("rows", "bytes", "sha256")}
            info["parts"].append({"file": f"part-{place:05d}.parquet", **fact})
    for name, info in found.items():
        by_day = work.job.settings.split == "time"
        inputs = {p: f["bytes"] for p, f in files.items() if not by_day or info["code"] in f["days"]}
        info |= {
            "segment": name,
            "version": old[name]["version"] if name in old else 0,
            "as_of": show_time(work.as_of),
            "as_of_micros": work.as_of,
            "files": inputs,
            "sha256": hashlib.sha256("".join(part["sha256"] for part in info["parts"]).encode()).hexdigest(),
        }
        info["version"] += not (name in old and old[name]["sha256"] == info["sha256"])
    return dict(sorted(found.items()))


def _manifest(
    job: Job, work: Work, files: FileFacts, as_of: int, days: set[int], states: list[int], newest: int
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "partitions": work.partitions,
        "settings": _settings(job),
        "files": files,
        "through": max(days, default=None),
        "newest": newest,
        "as_of": as_of,
        "states": states,
    }


def _segment_report(job: Job, info: dict[str, Any], state: str) -> SegmentReport:
    return SegmentReport.of(info, state, by_user=job.settings.split == "users")


def _nothing(job: Job, there: There, notes: list[str], as_of: int, started: float) -> PrepareReport:
    segments = tuple(_segment_report(job, info, "unchanged") for info in there.segments.values())
    notes = ["nothing to do: no file of the log is new", *notes]
    seconds = time.perf_counter() - started
    return PrepareReport(0, 0, 0, {}, segments, there.partitions, seconds, as_of=show_time(as_of), notes=tuple(notes))


def _report(
    work: Work,
    shuffled: Shuffled,
    parts: list[dict[str, Any]],
    segments: list[SegmentReport],
    started: float,
    notes: tuple[str, ...] = (),
    *,
    addition: bool = False,
) -> PrepareReport:
    """addition: events of days that are there are late; in a refresh they are in the saved tails."""
    reading, settings = shuffled.reading, work.job.settings
    dropped = dict(reading.dropped)
    short = sum(part["short"] for part in parts)
    if short:
        dropped[f"examples with fewer than {settings.min_history} earlier events (they stay in histories)"] = short
    return PrepareReport(
        events=reading.events,
        rows=sum(segment.rows for segment in segments),
        supervised=sum(segment.supervised for segment in segments),
        dropped=dropped,
        segments=tuple(sorted(segments, key=lambda segment: segment.name)),
        partitions=work.partitions,
        seconds=time.perf_counter() - started,
        tails=reading.tails,
        duplicates=sum(part["duplicates"] for part in parts),
        late={path: sum(days.values()) for path, days in reading.late.items()} if addition else {},
        as_of=show_time(work.as_of) if settings.attribution else "",
        notes=notes,
    )
