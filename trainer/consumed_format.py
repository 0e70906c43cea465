"""consumed/: what was trained, as the batches themselves told it. The format and its hashes; `Recorder` writes it,
`audit` reads it and computes the same from the files.

One file an attempt and rank, `attempt_00003_rank_00001.jsonl`, JSON lines, appended only:

    {"kind": "attempt", …}   once, first: who writes, and from which step on
    {"kind": "rows", …}      a window's rows, or those of a part of it: none straddles a checkpoint
    {"kind": "end", …}       the stream had no batch after this step

Hashes are 64 bits, sums are mod 2^64:

    place of a row = mix(row in file ^ FNV-1a of the file's name below its segment's folder, 1)
    ids of a row   = mix(place ^ Σ over id columns c and positions p of mix(id, 0) · factor(c) · (2p + 1), 2)

The ids' hash holds on to the row's place: ids that were handed to another row of the window change the sum.
"""

from __future__ import annotations

import base64
import json
import logging
import re
import zlib
from collections.abc import Sequence
from os.path import commonprefix
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from pipelines.hashing import derive_seed, hash_strings, mix
from pipelines.schema import INPUT_ROLES, Frozen, Schema
from pipelines.storage import open_file

Int64 = npt.NDArray[np.int64]
UInt64 = npt.NDArray[np.uint64]

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
SEGMENT_FILE = "_segment.json"
PLACES, IDS = 1, 2  # seeds of `mix`
NAME = re.compile(r"attempt_(\d{5,})_rank_(\d{5,})\.jsonl")


class RowSet(Frozen):
    """Rows of a file, ascending; one that is there twice was read twice. first, last: of them. count: how many.

    width: bytes of a difference between neighbours, 0 = all are 1. deltas: the differences, their low bytes first, then
    the next ones, compressed (zlib), in base64.
    """

    first: int = Field(ge=0)
    last: int = Field(ge=0)
    count: int = Field(gt=0)
    width: int = Field(default=0, ge=0, le=8)
    deltas: str = ""


class Part(Frozen):
    """Of one file. file: its name below the segment's folder. quarantined: those of the rows that were bad."""

    file: str
    rows: RowSet
    quarantined: RowSet | None = None


class Attempt(Frozen):
    """The first line. attempt: counts the processes that trained this run, one after the other. resumed_from: the step
    it went on from. segments: what it was to train, in order (rank 0 only). time: seconds since 1970."""

    kind: Literal["attempt"] = "attempt"
    format_version: int = FORMAT_VERSION
    attempt: int = Field(ge=0)
    rank: int = Field(ge=0)
    world_size: int = Field(gt=0)
    resumed_from: int = Field(ge=0)
    order: Literal["time", "shuffle"]
    epochs: int = Field(gt=0)
    segments: tuple[str, ...] = ()
    time: float


class Record(Frozen):
    """Rows of one window that one rank trained. window: its first global batch. batches, steps: first and last one.

    version: of the prepared segment, where it has one. trained, sampled_out, quarantined: rows by `Batch.status`.
    places, ids: the sums of hashes, in hex; `ids` is over rows that are not quarantined.
    """

    kind: Literal["rows"] = "rows"
    epoch: int = Field(ge=0)
    segment: str
    fingerprint: str
    version: int | None = None
    window: int = Field(ge=0)
    batches: tuple[int, int]
    steps: tuple[int, int]
    trained: int = Field(ge=0)
    sampled_out: int = Field(ge=0)
    quarantined: int = Field(ge=0)
    places: str = Field(pattern="^[0-9a-f]{16}$")
    ids: str = Field(pattern="^[0-9a-f]{16}$")
    parts: tuple[Part, ...] = ()

    @property
    def rows(self) -> int:
        """In all."""
        return self.trained + self.sampled_out + self.quarantined


class End(Frozen):
    """The stream had no batch after this step."""

    kind: Literal["end"] = "end"
    step: int = Field(ge=0)


def file_name(attempt: int, rank: int) -> str:
    """Of a rank's file."""
    return f"attempt_{attempt:05d}_rank_{rank:05d}.jsonl"


def files_of(consumed: Path) -> dict[int, dict[int, Path]]:
    """{attempt: {rank: its file}}, in order."""
    found: dict[int, dict[int, Path]] = {}
    for path in sorted(consumed.iterdir()) if consumed.is_dir() else []:
        if match := NAME.fullmatch(path.name):
            found.setdefault(int(match[1]), {})[int(match[2])] = path
    return dict(sorted(found.items()))


def encode_rows(rows: Int64) -> RowSet:
    """rows: at least one, in any order."""
    rows = np.sort(rows)
    deltas = np.diff(rows)
    first, last = int(rows[0]), int(rows[-1])
    if (deltas == 1).all():
        return RowSet(first=first, last=last, count=len(rows))
    width = next(w for w in (1, 2, 4, 8) if int(deltas.max()) < 256**w)
    planes = deltas.astype(f"<u{width}").view(np.uint8).reshape(-1, width).T
    packed = base64.b64encode(zlib.compress(planes.tobytes())).decode()
    return RowSet(first=first, last=last, count=len(rows), width=width, deltas=packed)


def decode_rows(rows: RowSet) -> Int64:
    """[count], ascending. Raises ValueError where they are not what `encode_rows` writes."""
    if rows.width == 0:
        found = np.arange(rows.first, rows.last + 1) if rows.last - rows.first + 1 == rows.count else np.zeros(0, int)
    else:
        expected = rows.width * (rows.count - 1)
        inflater = zlib.decompressobj()
        try:
            octets = inflater.decompress(base64.b64decode(rows.deltas, validate=True), expected + 1)
        except zlib.error as error:
            raise ValueError(str(error)) from None
        if len(octets) != expected:
            raise ValueError(f"{len(octets)} bytes of differences, {expected} expected")
        planes = np.frombuffer(octets, np.uint8).reshape(rows.width, -1)
        deltas = np.ascontiguousarray(planes.T).view(f"<u{rows.width}").ravel().astype(np.int64)
        found = rows.first + np.concatenate([[0], np.cumsum(deltas)])
    if len(found) != rows.count or found[-1] != rows.last or (rows.count > 1 and (np.diff(found) < 0).any()):
        raise ValueError("the rows do not end where they should")
    return found


def folder_of(files: Sequence[str]) -> str:
    """The folder that holds all of a segment's files, with its last "/"."""
    shared: str = commonprefix([_plain(file) for file in files])  # noqa: RUF071 - cut at a "/" below
    return shared[: shared.rfind("/") + 1]


def name_below(folder: str, file: str) -> str:
    """A file's name below its segment's folder: the same wherever the data are moved to."""
    return _plain(file)[len(folder) :]


def name_hash(name: str) -> int:
    """Signed 64 bits."""
    return int(hash_strings(pa.array([name]))[0])


def place_hashes(names_R: Int64 | int, row_R: Int64) -> UInt64:
    """names_R: `name_hash` of each row's file."""
    return mix(np.bitwise_xor(row_R, names_R), PLACES)


def row_hashes(sums_R: UInt64, places_R: UInt64) -> UInt64:
    """sums_R: over the row's ids, each `id_hashes` · factor of its column · (2p + 1)."""
    return mix(np.bitwise_xor(sums_R, places_R).view(np.int64), IDS)


def id_hashes(ids: Int64) -> UInt64:
    """Of each id, the same in every column."""
    return mix(ids, 0)


def list_sums(hashes_P: UInt64, lengths_R: Int64, kept_R: Int64) -> UInt64:
    """Σ over each row's newest kept_R positions of hash · (2p + 1), p from 0 at the oldest of them."""
    ends_R = np.cumsum(lengths_R)
    index_P = np.arange(len(hashes_P)) - np.repeat(ends_R - kept_R, lengths_R)
    odd_P = (2 * index_P + 1).view(np.uint64)
    running = np.zeros(len(hashes_P) + 1, np.uint64)
    np.cumsum(hashes_P * odd_P, out=running[1:])
    sums_R: UInt64 = running[ends_R] - running[ends_R - kept_R]
    return sums_R


def hashed_columns(schema: Schema) -> dict[str, np.uint64]:
    """{column: its factor}, odd: ids that every rank and every file has as they are. Actions are hidden where they are
    not known yet, and train_only columns are not always what the file holds."""
    return {
        name: np.uint64((2 * derive_seed(name, "ids") + 1) % 2**64)
        for name, spec in schema.columns.items()
        if spec.role in INPUT_ROLES and spec.role != "action" and spec.kind == "id" and not spec.train_only
    }


def total(hashes: UInt64) -> int:
    """Σ mod 2^64."""
    return int(hashes.sum(dtype=np.uint64))


def in_hex(value: int) -> str:
    """Of a sum."""
    return f"{value % 2**64:016x}"


def segment_version(folder: str) -> int | None:
    """Of a segment that `data prepare` wrote; None where it has none."""
    try:
        with open_file(folder + SEGMENT_FILE) as file:
            version = json.loads(file.read())["version"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s%s cannot be read (%s): audit will not know the segment's version", folder, SEGMENT_FILE, error)
        return None
    return version if isinstance(version, int) else None


def _plain(file: str) -> str:
    """Without the options of a URI's query."""
    return file.partition("?")[0] if "://" in file else file


def line_of(value: Frozen) -> bytes:
    """As it stands in the file."""
    return value.model_dump_json(exclude_none=True).encode() + b"\n"
