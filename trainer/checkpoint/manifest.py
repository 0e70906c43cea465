"""The JSON files of a checkpoint directory, and what makes it whole.

    rank_00000_000.safetensors …   tensors, chunk by chunk
    metadata.json                  which chunk of which tensor is where: names as model_state.py gives them
    state.json                     everything that is not a tensor (state.py)
    COMMIT                         size and sha256 of every other file; written last, when all of them are durable

Nothing here, or that reads these, unpickles.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TypeVar

import torch
from pydantic import Field, ValidationError

from pipelines.schema import Frozen
from trainer.errors import CheckpointError
from trainer.run_dir import COMMIT

METADATA = "metadata.json"
STATE = "state.json"
FORMAT_VERSION = 2
READABLE = (1, 2)
PLAIN_NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.]*$"  # no folders: a manifest names nothing outside its directory

Model = TypeVar("Model", bound=Frozen)


class FileRecord(Frozen):
    """bytes: its size. sha256: of its content, in hex."""

    bytes: int = Field(ge=0)
    sha256: str


class Commit(Frozen):
    """COMMIT: {file name: what it held when it was written}."""

    format_version: int
    step: int
    files: dict[str, FileRecord]

    def total_bytes(self) -> int:
        """Of the whole checkpoint."""
        return sum(record.bytes for record in self.files.values())


class Chunk(Frozen):
    """One box of a tensor, in full, under `key` of `file`; in the file it may be flat."""

    offsets: list[int]
    sizes: list[int]
    file: str = Field(pattern=PLAIN_NAME)
    key: str


class TensorRecord(Frozen):
    """dtype: torch's name of it, without "torch.". size: of the whole tensor over all ranks."""

    dtype: str
    size: list[int]
    chunks: list[Chunk]


class TensorIndex(Frozen):
    """metadata.json."""

    format_version: int
    tensors: dict[str, TensorRecord]


def digest(path: Path) -> FileRecord:
    """Size and sha256 of a file, read in pieces."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return FileRecord(bytes=os.fstat(file.fileno()).st_size, sha256=sha256)


def torch_dtype(name: str) -> torch.dtype:
    """By its name. Raises CheckpointError."""
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise CheckpointError(
            f"checkpoint: dtype {name!r} in {METADATA} → it must be one of torch's → use an older checkpoint"
        )
    return dtype


def read_commit(path: Path) -> Commit:
    """Raises CheckpointError: no COMMIT (the checkpoint is incomplete), not ours, or of a newer format."""
    commit = read_json(path / COMMIT, Commit)
    if commit.format_version not in READABLE:
        raise CheckpointError(
            f"checkpoint {path}: format {commit.format_version} → this version reads formats "
            f"{', '.join(map(str, READABLE))} → use the tokenformer that wrote it"
        )
    return commit


def read_index(path: Path, commit: Commit) -> TensorIndex:
    """metadata.json, when it is the file that was committed."""
    check_files(path, commit, [METADATA])
    return read_json(path / METADATA, TensorIndex)


def check_files(path: Path, commit: Commit, names: list[str]) -> None:
    """Raises CheckpointError with a line per file that is missing or not what was committed."""
    problems = []
    for name in names:
        expected = commit.files.get(name)
        file = path / name
        if expected is None or not file.is_file():
            found = "is not in COMMIT" if expected is None else "is missing"
        elif file.stat().st_size != expected.bytes:
            found = f"has {file.stat().st_size} bytes, {expected.bytes} were committed"
        elif digest(file) != expected:
            found = "has another sha256 than was committed"
        else:
            continue
        problems.append(
            f"checkpoint {path}: file {name} {found} → a checkpoint is read only as it was written → use an older one"
        )
    if problems:
        raise CheckpointError(problems)


def read_json(file: Path, model: type[Model]) -> Model:
    """One of the JSON files. Raises CheckpointError where it is missing or not what its model says."""
    try:
        return model.model_validate_json(file.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(
            f"checkpoint {file.parent}: no {file.name} → a checkpoint is complete only with it → use a complete one, "
            "see "
            f"{file.parent.parent}"
        ) from error
    except (OSError, ValidationError) as error:
        raise CheckpointError(
            f"checkpoint {file.parent}: {file.name} cannot be read ({type(error).__name__}) → it is a JSON file that "
            "`tokenformer train` writes → use an older checkpoint"
        ) from error
