"""DCP's storage, ours: safetensors for tensors, JSON for where they are, and no pickle on either path.

torch.distributed.checkpoint plans who writes and reads which box of which tensor (also under another world size or
sharding); these two classes only put boxes into files and take them out. Bytes entries are refused on both paths.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    SavePlanner,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from trainer.checkpoint import manifest
from trainer.checkpoint.manifest import Commit, FileRecord, Place
from trainer.errors import CheckpointError
from trainer.run_dir import COMMIT, fsync_directory, write_atomic

MAX_FILE_BYTES = 2**30  # bounds what a rank copies at once: safetensors serialises a file in memory


@dataclass(frozen=True)
class Written:
    """A rank's word to the coordinator about one chunk: where it is, and the whole file it is in."""

    place: Place
    file: FileRecord


class SafetensorsWriter(StorageWriter):
    """Writes `rank_RRRRR_NNN.safetensors` on every rank; the coordinator then writes metadata.json, state.json and
    COMMIT.

    rank: of this process. state: content of state.json; only the coordinator's is used. Every file is fsynced before
    COMMIT.
    """

    def __init__(self, path: Path, rank: int, step: int, state: str, max_file_bytes: int = MAX_FILE_BYTES) -> None:
        self.path = path
        self.rank = rank
        self.step = step
        self.state = state
        self.max_file_bytes = max_file_bytes

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """One writer, one checkpoint: nothing to reset."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """The coordinator's part is in prepare_global_plan and finish."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Raises TypeError for anything but tensors: it belongs into state.json."""
        for item in plan.items:
            if item.type == WriteItemType.BYTE_IO:
                raise TypeError(f"{item.index.fqn} is not a tensor: only tensors are checkpointed this way")
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Makes the directory, empty: what an interrupted save left there goes."""
        remove_checkpoint(self.path)
        self.path.mkdir(parents=True)
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """This rank's files, durable on return."""
        results: list[WriteResult] = []
        for number, items in enumerate(self._files(plan.items)):
            results += self._write_file(f"rank_{self.rank:05d}_{number:03d}.safetensors", items, planner)
        fsync_directory(self.path)
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Coordinator only, after every rank has written: the index, the state, then COMMIT."""
        written = [result for of_rank in results for result in of_rank]
        places = {result.index: result.storage_data.place for result in written}
        files = {result.storage_data.place.file: result.storage_data.file for result in written}
        write_atomic(self.path / manifest.METADATA, manifest.index_of(metadata, places).model_dump_json())
        write_atomic(self.path / manifest.STATE, self.state)
        for name in (manifest.METADATA, manifest.STATE):
            files[name] = manifest.digest(self.path / name)
        commit = Commit(format_version=manifest.FORMAT_VERSION, step=self.step, files=files)
        fsync_directory(self.path.parent)
        write_atomic(self.path / COMMIT, commit.model_dump_json(indent=2))

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """DCP asks this only to choose a storage by itself."""
        return False

    def _files(self, items: list[WriteItem]) -> list[list[WriteItem]]:
        """Items without the empty ones (a rank may own no rows), cut into files of about max_file_bytes."""
        files: list[list[WriteItem]] = []
        room = 0
        for item in items:
            assert item.tensor_data is not None
            size = item.tensor_data.chunk.sizes.numel() * item.tensor_data.properties.dtype.itemsize
            if size == 0:
                continue
            if not files or size > room:
                files.append([])
                room = self.max_file_bytes
            files[-1].append(item)
            room -= size
        return files

    def _write_file(self, name: str, items: list[WriteItem], planner: SavePlanner) -> list[WriteResult]:
        tensors = {_key(item.index): _own(planner.resolve_data(item)) for item in items}
        try:
            save_file(tensors, self.path / name)
        except SafetensorError as error:  # what an OSError becomes in it: a full disk, no permission
            raise CheckpointError(
                f"checkpoint: {self.path / name} cannot be written ({error}) → its files must be writable, with room "
                "on the disk → make room or choose another --run-dir"
            ) from error
        with (self.path / name).open("rb") as file:
            os.fsync(file.fileno())
        record = manifest.digest(self.path / name)
        return [
            WriteResult(item.index, tensors[_key(item.index)].nbytes, Written(Place(name, _key(item.index)), record))
            for item in items
        ]


class SafetensorsReader(StorageReader):
    """Reads boxes out of a complete checkpoint; every file was what COMMIT says before the first tensor is touched.

    rank, world_size: the ranks share the checking of the files.
    """

    def __init__(self, path: Path, rank: int, world_size: int) -> None:
        self.path = path
        self.rank = rank
        self.world_size = world_size
        self.commit = manifest.read_commit(path)
        self.metadata = manifest.metadata_of(manifest.read_index(path, self.commit))

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """One reader, one checkpoint: nothing to reset."""

    def read_metadata(self) -> Metadata:
        """Read once, in the constructor: DCP would wrap its errors."""
        return self.metadata

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """This rank's share of the files is checked; a problem on one rank is raised on all."""
        names = sorted(set(self.commit.files) | {place.file for place in self.metadata.storage_data.values()})
        manifest.check_files(self.path, self.commit, names[self.rank :: self.world_size])

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """As planned."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """As planned."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Copies each planned box into its tensor, file by file; only the bytes of the boxes are read."""
        by_file: dict[str, list[ReadItem]] = {}
        for item in plan.items:
            if item.lengths.numel():
                by_file.setdefault(self.metadata.storage_data[item.storage_index].file, []).append(item)
        for name, items in by_file.items():
            with open_safetensors(self.path, name) as file:
                self._read_items(file, items, planner)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """DCP asks this only to choose a storage by itself."""
        return False

    def _read_items(self, file: Any, items: list[ReadItem], planner: LoadPlanner) -> None:
        for item in items:
            key = self.metadata.storage_data[item.storage_index].key
            target = planner.resolve_tensor(item).detach()
            box = tuple(
                slice(start, start + size) for start, size in zip(item.storage_offsets, item.lengths, strict=True)
            )
            target.copy_(file.get_slice(key)[box] if box else file.get_tensor(key))
            planner.commit_tensor(item, target)


@contextmanager
def open_safetensors(path: Path, name: str) -> Iterator[Any]:
    """A file of a checkpoint, memory-mapped. Raises CheckpointError where it is not safetensors: a pickle in its place
    is refused, not run."""
    try:
        with safe_open(path / name, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"checkpoint {path}: file {name} cannot be read as safetensors ({error}) → nothing else is read → use an "
            "older one"
        ) from error


def remove_checkpoint(path: Path) -> None:
    """COMMIT first: what is half removed is not complete."""
    if path.exists():
        (path / COMMIT).unlink(missing_ok=True)
        shutil.rmtree(path)


def _key(index: MetadataIndex) -> str:
    """Unique in a file: a rank may hold several chunks of a tensor."""
    return f"{index.fqn}@{','.join(map(str, index.offset or ()))}"


def _own(tensor: Any) -> torch.Tensor:
    """On the host, contiguous, and sharing memory with no other entry of the file."""
    assert isinstance(tensor, torch.Tensor)
    return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach())
