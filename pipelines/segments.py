"""Which segments there are, and which of them are trained on and evaluated on."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from pipelines.config import Data
from pipelines.errors import DataError
from pipelines.storage import COLUMNAR_SUFFIXES, is_file, list_files

log = logging.getLogger(__name__)

HIVE = re.compile(r"[^=/]+=(?P<value>[^/]*)/")
GLOB = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Segment:
    """A partition of the rows. name: its hive value, or "all" for a whole path. files: sorted; local paths or URIs
    (pipelines.storage)."""

    name: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class SegmentList:
    """Segments in name order: to train on, and to evaluate on."""

    train: tuple[Segment, ...]
    eval: tuple[Segment, ...]


def find_segments(data: Data) -> SegmentList:
    """The segments that `[data]` names; see `Data` for the rules. Raises DataError when there is none to train on."""
    segments = included(list_segments(data.rows), data)
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
    return SegmentList(tuple(by_name[n] for n in train), tuple(by_name[n] for n in held_out))


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


def list_segments(rows: str) -> list[Segment]:
    """All segments of a file, folder, glob ("*", "?" and "[]" inside one path component) or URI. Raises DataError when
    there is none."""
    try:
        files = _find_files(rows)
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
    hive = [HIVE.match(relative) for _, relative in files]
    if not any(hive):
        return [Segment("all", tuple(path for path, _ in files))]
    groups: dict[str, list[str]] = {}
    folders: dict[str, set[str]] = {}
    for (path, relative), match in zip(files, hive, strict=True):
        if match is None:
            raise DataError(
                f"'{path}' lies beside hive folders of '{rows}' → a file is in one segment"
                " → move it into a key=value folder"
            )
        groups.setdefault(match["value"], []).append(path)
        folders.setdefault(match["value"], set()).add(relative.split("/")[0])
    twice = [
        f"{sorted(names)} of '{rows}' → segments have one value each → rename one"
        for names in folders.values()
        if len(names) > 1
    ]
    if twice:
        raise DataError(twice)
    return [Segment(name, tuple(groups[name])) for name in sorted(groups)]


def _find_files(rows: str) -> list[tuple[str, str]]:
    if "://" not in rows and GLOB.search(rows) and not is_file(rows):
        return _find_glob(rows)
    if is_file(rows):
        return [(rows, rows.rsplit("/", 1)[-1])]
    return [(path, relative) for path, relative in list_files(rows) if relative.endswith(COLUMNAR_SUFFIXES)]


def _find_glob(pattern: str) -> list[tuple[str, str]]:
    """Files that match, and the Parquet files below folders that match."""
    parts = pattern.split("/")
    first = next(index for index, part in enumerate(parts) if GLOB.search(part))
    base = "/".join(parts[:first]) or ("/" if pattern.startswith("/") else ".")
    wanted = [part for part in parts[first:] if part]
    found = []
    for path, relative in list_files(base):
        have = relative.split("/")
        matches = len(have) >= len(wanted) and all(map(fnmatchcase, have, wanted))
        if matches and (len(have) == len(wanted) or relative.endswith(COLUMNAR_SUFFIXES)):
            found.append((path, relative))
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
