"""`checkpoint reshard`: the same tensors, bit for bit, as a full checkpoint with a file for each of N ranks.

Resuming does not need it: a checkpoint loads under any world size. It makes each rank read its own file only, and
a chain of differences one checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from trainer.checkpoint import manifest
from trainer.checkpoint.folder import COMMIT, Folder
from trainer.checkpoint.manifest import Chunk, FileRecord, TensorIndex, TensorRecord
from trainer.checkpoint.reading import SavedTensors
from trainer.checkpoint.saving import MAX_FILE_BYTES
from trainer.checkpoint.tensor_file import Entry, TensorFileWriter
from trainer.checkpoint_verbs.output import new_folder
from trainer.checkpoint_verbs.rank_boxes import Box, boxes_of, read_plan
from trainer.checkpoint_verbs.source import check_files, state_of
from trainer.errors import ConfigError

BLOCK_BYTES = 2**24  # read and written at a time


@dataclass(frozen=True)
class Resharded:
    """files, bytes: of the new checkpoint. rank_bytes: of each rank's tensors."""

    step: int
    files: int
    bytes: int
    rank_bytes: list[int]


@dataclass(frozen=True)
class Part:
    """A box of a tensor, and the entry of a file that it becomes."""

    name: str
    box: Box
    entry: Entry


def reshard(saved: SavedTensors, world_size: int, out: str, plan_path: str | None = None) -> Resharded:
    """Writes the checkpoint to `out`, a new folder or a URI. Raises ConfigError (the plan, or `out`), CheckpointError
    where a file is not what was committed."""
    plan = {} if plan_path is None else read_plan(plan_path, world_size)
    check_files(saved)
    boxes = boxes_of(saved.tensors, world_size, plan)
    rank_bytes = [0] * world_size
    chunks: dict[str, list[Chunk]] = {name: [] for name in saved.tensors}
    files: dict[str, FileRecord] = {}
    with _target(out) as folder:
        for rank in range(world_size):
            for number, parts in enumerate(_files(saved, boxes, rank)):
                file = f"rank_{rank:05d}_{number:03d}.safetensors"
                files[file] = _write(folder, file, saved, parts)
                rank_bytes[rank] += sum(part.entry.bytes for part in parts)
                for part in parts:
                    box = part.box
                    chunk = Chunk(offsets=list(box.offsets), sizes=list(box.sizes), file=file, key=part.entry.key)
                    chunks[part.name].append(chunk)
        records = {
            name: TensorRecord(dtype=record.dtype, size=record.size, chunks=chunks[name])
            for name, record in sorted(saved.tensors.items())
        }
        total = _commit(folder, saved, records, files)
    return Resharded(saved.commit.step, len(files), total, rank_bytes)


@contextmanager
def _target(out: str) -> Iterator[Folder]:
    """On a disk it appears in one rename; in a store COMMIT, written last, makes it a checkpoint."""
    if "://" not in out:
        with new_folder(out) as work:
            yield Folder(work)
        return
    folder = Folder(out)
    if folder.size(COMMIT) is not None or folder.size(manifest.METADATA) is not None:
        raise ConfigError(f"output {out} holds a checkpoint → it must be a new place → name another")
    try:
        yield folder
    except BaseException:
        folder.remove()
        raise


def _files(saved: SavedTensors, boxes: dict[str, list[Box]], rank: int) -> Iterator[list[Part]]:
    """A rank's boxes, in files of about MAX_FILE_BYTES."""
    held: list[Part] = []
    room = MAX_FILE_BYTES
    for name, of_tensor in boxes.items():
        for box in of_tensor:
            if box.rank != rank or not math.prod(box.sizes):
                continue
            key = f"{name}@{','.join(map(str, box.offsets))}"
            entry = Entry(key, manifest.torch_dtype(saved.tensors[name].dtype), box.sizes)
            if held and entry.bytes > room:
                yield held
                held, room = [], MAX_FILE_BYTES
            held.append(Part(name, box, entry))
            room -= entry.bytes
    if held:
        yield held


def _write(folder: Folder, file: str, saved: SavedTensors, parts: list[Part]) -> FileRecord:
    with folder.sink(file) as write:
        writer = TensorFileWriter(write, [part.entry for part in parts])
        for part in parts:
            for piece in _pieces(saved, part):
                writer.write(piece.contiguous().reshape(-1).view(torch.uint8).numpy())
        return writer.close()


def _pieces(saved: SavedTensors, part: Part) -> Iterator[torch.Tensor]:
    """The box in order, BLOCK_BYTES at a time."""
    offsets, sizes = part.box.offsets, part.box.sizes
    if not sizes:
        yield saved.read(part.name)
        return
    step = max(1, BLOCK_BYTES * sizes[0] // max(1, part.entry.bytes))
    for first in range(0, sizes[0], step):
        count = min(step, sizes[0] - first)
        yield saved.read(part.name, (offsets[0] + first, *offsets[1:]), (count, *sizes[1:]))


def _commit(folder: Folder, saved: SavedTensors, records: dict[str, TensorRecord], files: dict[str, FileRecord]) -> int:
    """Index, state, then COMMIT. Returns the bytes of all files."""
    version = {"format_version": manifest.FORMAT_VERSION}
    index = TensorIndex(tensors=records, **version)
    state = state_of(saved).model_copy(update=version)
    for name, content in (
        (manifest.METADATA, index.model_dump_json()),
        (manifest.STATE, state.model_dump_json(indent=2)),
    ):
        folder.write(name, content.encode())
        files[name] = manifest.record_of(content.encode())
    commit = saved.commit.model_copy(update={"files": files, "base": None, **version})
    folder.write(COMMIT, commit.model_dump_json(indent=2).encode())
    return commit.total_bytes()
