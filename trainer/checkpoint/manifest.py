"""The JSON files of a checkpoint directory, and what makes it whole.

    rank_00000_000.safetensors …   tensors, chunk by chunk
    metadata.json                  which chunk of which tensor is where: names as model_state.py gives them
    state.json                     everything that is not a tensor (state.py)
    COMMIT                         size and sha256 of every other file; written last, when all of them are durable

A checkpoint is a full one, or a difference: to its base, which COMMIT names, itself full or a difference.

Nothing here, or that reads these, unpickles.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import torch
from pydantic import BaseModel, Field, ValidationError

from pipelines.schema import Frozen
from trainer.checkpoint.folder import COMMIT, PIECE, Folder, Location
from trainer.errors import CheckpointError

METADATA = "metadata.json"
STATE = "state.json"
FORMAT_VERSION = 2
READABLE = (1, 2)
PLAIN_NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.]*$"  # no folders: a manifest names nothing outside its directory

Kind = Literal["full", "delta"]
Model = TypeVar("Model", bound=BaseModel)


class DamagedError(CheckpointError):
    """Incomplete, or not what was once written: an older checkpoint may be good."""


class FileRecord(Frozen):
    """bytes: its size. sha256: of its content, in hex."""

    bytes: int = Field(ge=0)
    sha256: str


class Base(Frozen):
    """What a difference is to. name: of the folder beside its own. sha256: of the base's COMMIT."""

    name: str = Field(pattern=PLAIN_NAME)
    sha256: str


class Commit(Frozen):
    """COMMIT.

    files: {file name: what it held when it was written}. base: of a difference. segment: of the last batch trained.
    scores: {TASK.METRIC: of the evaluation at this very step}; by these two and the step it is kept or removed.
    """

    format_version: int
    step: int
    files: dict[Annotated[str, Field(pattern=PLAIN_NAME)], FileRecord]
    base: Base | None = None
    segment: str = ""
    scores: Mapping[str, float] = Field(default_factory=dict)

    @property
    def kind(self) -> Kind:
        return "full" if self.base is None else "delta"

    def total_bytes(self) -> int:
        """Of the whole checkpoint."""
        return sum(record.bytes for record in self.files.values())


class Chunk(Frozen):
    """One box of a tensor, under `key` of `file`; in the file it may be flat.

    positions: key of the same file, "" = the box is stored in full. Else only the elements at these positions are,
    ascending: of the box seen as [−1, the stored shape but for its first dimension]. The others are the base's.
    """

    offsets: list[int]
    sizes: list[int]
    file: str = Field(pattern=PLAIN_NAME)
    key: str
    positions: str = ""


class TensorRecord(Frozen):
    """dtype: torch's name of it, without "torch.". size: of the whole tensor over all ranks."""

    dtype: str
    size: list[int]
    chunks: list[Chunk]


class TensorIndex(Frozen):
    """metadata.json."""

    format_version: int
    tensors: dict[str, TensorRecord]


def record_of(content: bytes) -> FileRecord:
    """Of a small file."""
    return FileRecord(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def digest(path: Path) -> FileRecord:
    """Size and sha256 of a file on this machine, read in pieces."""
    return digest_in(Folder(path.parent), path.name)


def digest_in(folder: Folder, name: str) -> FileRecord:
    """Size and sha256 of a file, read in pieces."""
    sha256 = hashlib.sha256()
    size = 0
    with folder.open(name) as file:
        while content := file.read(PIECE):
            sha256.update(content)
            size += len(content)
    return FileRecord(bytes=size, sha256=sha256.hexdigest())


def torch_dtype(name: str) -> torch.dtype:
    """By its name. Raises CheckpointError."""
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise CheckpointError(
            f"checkpoint: dtype {name!r} in {METADATA} → it must be one of torch's → use an older checkpoint"
        )
    return dtype


def read_commit(path: Location) -> Commit:
    """Raises DamagedError: no COMMIT (the checkpoint is incomplete), or not ours; CheckpointError: of a newer
    format."""
    folder = Folder(path)
    version = read_json(folder, COMMIT, _Version).format_version
    if version not in READABLE:
        raise CheckpointError(
            f"checkpoint {folder}: format {version} → this version reads formats {', '.join(map(str, READABLE))} → use "
            "the tokenformer that wrote it"
        )
    return read_json(folder, COMMIT, Commit)


def read_index(path: Location, commit: Commit) -> TensorIndex:
    """metadata.json, when it is the file that was committed."""
    return read_committed(path, commit, METADATA, TensorIndex)


def read_committed(path: Location, commit: Commit, name: str, model: type[Model]) -> Model:
    """A JSON file, when it is the one that was committed."""
    check_files(path, commit, [name])
    return read_json(Folder(path), name, model)


def check_files(path: Location, commit: Commit, names: list[str]) -> None:
    """Raises DamagedError with a line per file that is missing or not what was committed."""
    folder, problems = Folder(path), []
    for name in names:
        expected = commit.files.get(name)
        size = folder.size(name) if expected is not None else None
        if expected is None or size is None:
            found = "is not in COMMIT" if expected is None else "is missing"
        elif size != expected.bytes:
            found = f"has {size} bytes, {expected.bytes} were committed"
        elif digest_in(folder, name) != expected:
            found = "has another sha256 than was committed"
        else:
            continue
        problems.append(
            f"checkpoint {folder}: file {name} {found} → a checkpoint is read only as it was written → use an older one"
        )
    if problems:
        raise DamagedError(problems)


def read_json(folder: Folder, name: str, model: type[Model]) -> Model:
    """One of the JSON files. Raises DamagedError where it is missing or not what its model says."""
    try:
        return model.model_validate_json(folder.read(name))
    except FileNotFoundError as error:
        raise DamagedError(
            f"checkpoint {folder}: no {name} → a checkpoint is complete only with it → use a complete one, see "
            f"{str(folder).rpartition('/')[0]}"
        ) from error
    except (OSError, ValidationError) as error:
        raise DamagedError(
            f"checkpoint {folder}: {name} cannot be read ({type(error).__name__}) → it is a JSON file that "
            "`tokenformer train` writes → use an older checkpoint"
        ) from error


class _Version(BaseModel):
    """What every format's COMMIT has."""

    format_version: int
