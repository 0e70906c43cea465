"""Predictions as Parquet: one file a rank, written while predicting, complete when `_SUCCESS` is there.

What `_SUCCESS` holds (JSON): of which run, checkpoint and step, of which rows, the tasks and their columns, and the
files with their rows.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trainer.errors import CheckpointError, ConfigError
from trainer.run_dir import fsync_directory, write_atomic

SUCCESS = "_SUCCESS"
FORMAT = 1
ROW_GROUP = 1 << 17
PLAIN = re.compile(r"part-\d+\.parquet")  # no folders: a manifest names nothing outside its own
FILE, ROW, POSITION = "source_file", "source_row", "source_position"
OWN = {FILE: pa.dictionary(pa.int32(), pa.string()), ROW: pa.int64(), POSITION: pa.int32()}


@dataclass(frozen=True)
class Manifest:
    """group: of the supervised positions: "candidates" or "history.NAME". user, time, request, candidate, by: columns
    of the data that are in the files ("" or none where the schema has none). boundaries: of `by`, where it is a bucket
    column. parts: {file: its rows}."""

    run: str
    checkpoint: str
    step: int
    data: str
    tasks: tuple[str, ...]
    group: str = ""
    user: str = ""
    time: str = ""
    request: tuple[str, ...] = ()
    candidate: tuple[str, ...] = ()
    by: str = ""
    boundaries: tuple[float, ...] = ()
    parts: dict[str, int] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def rows(self) -> int:
        """Positions, in all files."""
        return sum(self.parts.values())


def task_columns(task: str) -> tuple[str, str, str]:
    """Probability, label, weight."""
    return f"{task}_probability", f"{task}_label", f"{task}_weight"


def require_free(folder: str) -> None:
    """Raises ConfigError where predictions cannot go there: before anything is loaded."""
    if "://" in folder:
        raise ConfigError(f"predictions {folder} → they are written to a folder of this machine → name one")
    path = Path(folder)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(
            f"predictions {folder} is not empty → it must be absent or an empty folder → remove it or name another"
        )


class PredictionWriter:
    """This rank's file. Row groups leave as they fill up, so memory is bounded by one of them."""

    def __init__(self, folder: Path, rank: int, schema: pa.Schema) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.name, self.rows = folder, f"part-{rank:05d}.parquet", 0
        self._part = folder / f".{self.name}.part"
        self._schema = schema
        self._waiting: list[pa.Table] = []
        self._waiting_rows = 0
        self._writer: pq.ParquetWriter | None = pq.ParquetWriter(self._part, schema, compression="zstd")

    def add(self, columns: dict[str, pa.Array]) -> None:
        """One batch's positions, columns as in the schema."""
        table = pa.table(columns, schema=self._schema)
        self._waiting.append(table)
        self._waiting_rows += len(table)
        if self._waiting_rows >= ROW_GROUP:
            self._flush()

    def close(self) -> None:
        """The file is whole, durable and has its name."""
        assert self._writer is not None
        self._flush()
        self._writer.close()
        self._writer = None
        with self._part.open("rb") as file:
            os.fsync(file.fileno())
        self._part.replace(self.folder / self.name)
        fsync_directory(self.folder)

    def abandon(self) -> None:
        """After an error: nothing half-written stays. Does nothing when it is closed."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            self._part.unlink(missing_ok=True)

    def _flush(self) -> None:
        if not self._waiting or self._writer is None:
            return
        table = pa.concat_tables(self._waiting).unify_dictionaries()
        self._writer.write_table(table, row_group_size=ROW_GROUP)
        self.rows += len(table)
        self._waiting, self._waiting_rows = [], 0


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Makes the folder complete."""
    write_atomic(folder / SUCCESS, json.dumps(asdict(manifest), indent=2, ensure_ascii=False) + "\n")


def read_manifest(folder: str) -> Manifest:
    """Raises CheckpointError where the folder is not a complete one of predictions."""
    path = Path(folder) / SUCCESS
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        lists = {key: tuple(found[key]) for key in ("tasks", "request", "candidate", "boundaries")}
        manifest = Manifest(**(found | lists))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"'{folder}' has no {SUCCESS} that can be read → predictions are complete only with it → name a folder that"
            " `evaluate --predictions` has written to its end"
        ) from error
    strangers = [name for name in manifest.parts if not PLAIN.fullmatch(name)]
    if strangers:
        raise CheckpointError(
            f"'{folder}' names the file {strangers[0]!r} → its files lie in it and are called part-N.parquet → "
            "predict anew"
        )
    missing = [name for name in manifest.parts if not (path.parent / name).is_file()]
    if missing or manifest.format != FORMAT:
        what = f"lacks {', '.join(missing[:3])}" if missing else f"is of format {manifest.format}"
        raise CheckpointError(f"'{folder}' {what} → it is read whole, in format {FORMAT} → predict anew")
    return manifest


def read_predictions(folder: str, manifest: Manifest, columns: list[str]) -> pa.Table:
    """These columns of all its files."""
    parts = [pq.read_table(Path(folder) / name, columns=columns) for name in sorted(manifest.parts)]
    return pa.concat_tables(parts).unify_dictionaries().combine_chunks()
