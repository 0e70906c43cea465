"""Which segments there are, and which of them are trained on and evaluated on."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from pipelines.config import Data
from pipelines.errors import DataError
from pipelines.manifest import Entry, by_segment, read_manifest
from pipelines.retries import READ_RETRIES
from pipelines.storage import COLUMNAR_SUFFIXES, File, exists, list_folder, stat_files

log = logging.getLogger(__name__)

HIVE = re.compile(r"[^=/]+=(?P<value>[^/]*)/")
GLOB = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Segment:
    """A partition of the rows. name: its hive value, or "all" for a whole path. files: sorted, or in their manifest's
    order; local paths or URIs (pipelines.storage). sizes, changed: of each file when the segments were listed
    (`storage.File`), so that a plan knows a file that was replaced since; empty where they were not looked up. rows: of
    each file by the manifest, None = not given; () = no manifest."""

    name: str
    files: tuple[str, ...]
    sizes: tuple[int, ...] = ()
    changed: tuple[int, ...] = ()
    rows: tuple[int | None, ...] = ()


@dataclass(frozen=True)
class SegmentList:
    """Segments in name order: to train on, and to evaluate on."""

    train: tuple[Segment, ...]
    eval: tuple[Segment, ...]


def find_segments(data: Data) -> SegmentList:
    """The segments that `[data]` names; see `Data` for the rules. Raises DataError when there is none to train on."""
    segments = included(list_segments(data.rows, data.read_retries), data)
    names = [segment.name for segment in segments]
    train = _select(names, data.segments, "data.segments")
    held_out = _select(names, data.eval_segments, "data.eval_segments")
    if not data.eval_segments:
        last_is_trained = bool(data.segments) and names[-1] in train
        held_out = names[-1:] if len(names) > 1 and not last_is_trained else []
    if not data.segments:
        train = [name for name in names if name not in held_out]
    if not train:
        raise DataError(
            f"data.eval_segments = '{data.eval_segments}' → leaves no segment of {names} to train on"
            " → name data.segments"
        )
    overlap = [name for name in train if name in held_out]
    if overlap:
        log.warning(
            "segments %s are both trained on and evaluated on, as data.segments and data.eval_segments say", overlap
        )
    by_name = {segment.name: segment for segment in segments}
    found = look_up([by_name[name] for name in [*train, *held_out]], data.read_retries)
    return SegmentList(tuple(found[: len(train)]), tuple(found[len(train) :]))


def included(segments: Sequence[Segment], data: Data) -> list[Segment]:
    """Those that `data.exclude` leaves. Raises DataError when there are none."""
    left = [segment for segment in segments if not any(matches(segment.name, entry) for entry in data.exclude)]
    if not left:
        raise DataError(
            f"data.exclude = {list(data.exclude)} → leaves none of the {len(segments)} segments of '{data.rows}'"
            " → take a name out"
        )
    return left


def matches(name: str, pattern: str) -> bool:
    """Whether an entry of `data.exclude` is or matches a segment's name."""
    return name == pattern or fnmatchcase(name, pattern)


def list_segments(rows: str, retries: int = READ_RETRIES) -> list[Segment]:
    """All segments of a file, folder, glob ("*", "[]", locally also "?", each inside one path component), manifest, or
    URI of one. Raises DataError when there is none."""
    try:
        listed = read_manifest(rows)
        if listed is not None:
            return [_of_manifest(name, entries) for name, entries in by_segment(listed).items()]
        files = find_files(rows, retries)
    except (FileNotFoundError, NotADirectoryError):
        files = []
    except (OSError, ValueError) as error:
        raise DataError(
            f"data.rows = '{rows}' → cannot be listed: {error} → check the path or URI and its credentials"
        ) from error
    if not files:
        raise DataError(
            f"data.rows = '{rows}' → no Parquet file (*{', *'.join(COLUMNAR_SUFFIXES)}) there"
            " → check the path, or make rows with `data prepare`"
        )
    hive = [HIVE.match(file.relative) for file in files]
    if not any(hive):
        return [_segment("all", files)]
    groups: dict[str, list[File]] = {}
    folders: dict[str, set[str]] = {}
    for file, match in zip(files, hive, strict=True):
        if match is None:
            raise DataError(
                f"'{file.path}' lies beside hive folders of '{rows}' → a file is in one segment"
                " → move it into a key=value folder"
            )
        groups.setdefault(match["value"], []).append(file)
        folders.setdefault(match["value"], set()).add(file.relative.split("/")[0])
    twice = [
        f"{sorted(names)} of '{rows}' → segments have one value each → rename one"
        for names in folders.values()
        if len(names) > 1
    ]
    if twice:
        raise DataError(twice)
    return [_segment(name, groups[name]) for name in sorted(groups)]


def _of_manifest(name: str, entries: list[Entry]) -> Segment:
    return Segment(name, tuple(e.path for e in entries), rows=tuple(e.rows for e in entries))


def look_up(segments: Sequence[Segment], retries: int = READ_RETRIES) -> list[Segment]:
    """The same segments, with sizes and times of change where they were not known. A file that is not there has size
    −1: reading its footer says so."""
    found = iter(stat_files([path for segment in segments if not segment.sizes for path in segment.files], retries))

    def complete(segment: Segment) -> Segment:
        files = [next(found) for _ in segment.files]
        sizes = tuple(-1 if file is None else file.size for file in files)
        return replace(segment, sizes=sizes, changed=tuple(-1 if file is None else file.changed for file in files))

    return [segment if segment.sizes else complete(segment) for segment in segments]


def _segment(name: str, files: Sequence[File]) -> Segment:
    paths, sizes, changed = zip(*((file.path, file.size, file.changed) for file in files), strict=True)
    return Segment(name, paths, sizes, changed)


def find_files(rows: str, retries: int = READ_RETRIES) -> list[File]:
    """Parquet files of a file, folder, glob or URI, sorted; none where nothing matches. Raises FileNotFoundError."""
    if "://" in rows and GLOB.search(re.split("[/?]", rows.partition("://")[2])[0]):
        raise ValueError("the name of a bucket is no pattern")
    [single] = stat_files([rows], retries)
    if single is not None:
        return [single]
    if GLOB.search(rows.partition("?")[0] if "://" in rows else rows) and not exists(rows, retries):
        return _find_glob(rows, retries)
    return [file for file in list_folder(rows, retries) if file.relative.endswith(COLUMNAR_SUFFIXES)]


def _find_glob(pattern: str, retries: int) -> list[File]:
    """Files that match, and the Parquet files below folders that match. The folder below which no component is a
    pattern is listed."""
    scheme, mark, rest = pattern.rpartition("://")
    rest, question, options = rest.partition("?") if mark else (rest, "", "")
    parts = rest.split("/")
    first = next(index for index, part in enumerate(parts) if GLOB.search(part))
    base = scheme + mark + ("/".join(parts[:first]) or ("/" if rest.startswith("/") else ".")) + question + options
    wanted = [part for part in parts[first:] if part]
    found = []
    for file in list_folder(base, retries):
        have = file.relative.split("/")
        matches = len(have) >= len(wanted) and all(map(fnmatchcase, have, wanted))
        if matches and (len(have) == len(wanted) or file.relative.endswith(COLUMNAR_SUFFIXES)):
            found.append(file)
    return found


def _select(names: list[str], wanted: str, key: str) -> list[str]:
    """Names in "A..B" (inclusive, either end may be empty), or the one name; "" = all."""
    if not wanted:
        return list(names)
    first, dots, last = wanted.partition("..")
    chosen = [n for n in names if first <= n and (not last or n <= last)] if dots else [n for n in names if n == wanted]
    if not chosen:
        there = ", ".join(names) if len(names) <= 8 else f"{names[0]} … {names[-1]} ({len(names)} segments)"
        raise DataError(
            f"{key} = '{wanted}' → names none of the segments there: {there} → name one, or a range A..B of them"
        )
    return chosen
