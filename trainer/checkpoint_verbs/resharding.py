"""`checkpoint reshard`: the same tensors, bit for bit, as a full checkpoint with a file for each of N ranks.

Resuming does not need it: a checkpoint loads under any world size. It makes each rank read its own file only, and
a chain of deltas one checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from trainer.checkpoint import manifest
from trainer.checkpoint.manifest import Chunk, Commit, FileRecord, TensorIndex, TensorRecord
from trainer.checkpoint.reading import SavedTensors
from trainer.checkpoint_verbs.output import new_folder
from trainer.checkpoint_verbs.rank_boxes import Box, boxes_of, read_plan
from trainer.checkpoint_verbs.safetensors_stream import Entry, write_safetensors
from trainer.checkpoint_verbs.source import state_of
from trainer.run_dir import COMMIT, write_atomic

MAX_FILE_BYTES = 2**30
BLOCK_BYTES = 2**24  # read and written at a time


@dataclass(frozen=True)
class Resharded:
    """files, bytes: of the new checkpoint. rank_bytes: of each rank's tensors."""

    step: int
    files: int
    bytes: int
    rank_bytes: list[int]


def reshard(saved: SavedTensors, world_size: int, out: str, plan_path: str | None = None) -> Resharded:
    """Writes the checkpoint to `out`, a new folder. Raises ConfigError (the plan, or `out`), CheckpointError where a
    file is not what was committed."""
    plan = {} if plan_path is None else read_plan(plan_path, world_size)
    saved.check_files()
    boxes = boxes_of(saved.tensors, world_size, plan)
    step = saved.commit.step
    rank_bytes = [0] * world_size
    chunks: dict[str, list[Chunk]] = {name: [] for name in saved.tensors}
    files: dict[str, FileRecord] = {}
    with new_folder(out) as folder:
        for rank in range(world_size):
            for number, entries in enumerate(_files(saved, boxes, rank)):
                file = f"rank_{rank:05d}_{number:03d}.safetensors"
                files[file] = write_safetensors(folder / file, [entry for _, _, entry in entries])
                rank_bytes[rank] += sum(entry.bytes for _, _, entry in entries)
                for name, box, entry in entries:
                    chunk = Chunk(offsets=list(box.offsets), sizes=list(box.sizes), file=file, key=entry.key)
                    chunks[name].append(chunk)
        records = {
            name: TensorRecord(dtype=record.dtype, size=record.size, chunks=chunks[name])
            for name, record in sorted(saved.tensors.items())
        }
        total = _commit(folder, saved, records, files)
    return Resharded(step, len(files), total, rank_bytes)


def _files(saved: SavedTensors, boxes: dict[str, list[Box]], rank: int) -> Iterator[list[tuple[str, Box, Entry]]]:
    """A rank's boxes, in files of about MAX_FILE_BYTES."""
    held: list[tuple[str, Box, Entry]] = []
    room = MAX_FILE_BYTES
    for name, of_tensor in boxes.items():
        for box in of_tensor:
            if box.rank != rank or not math.prod(box.sizes):
                continue
            dtype = manifest.torch_dtype(saved.tensors[name].dtype)
            key = f"{name}@{','.join(map(str, box.offsets))}"
            entry = Entry(key, dtype, box.sizes, _pieces(saved, name, box, dtype))
            if held and entry.bytes > room:
                yield held
                held, room = [], MAX_FILE_BYTES
            held.append((name, box, entry))
            room -= entry.bytes
    if held:
        yield held


def _pieces(saved: SavedTensors, name: str, box: Box, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """The box in order, BLOCK_BYTES at a time."""
    if not box.sizes:
        yield saved.read(name)
        return
    rest = box.sizes[1:]
    step = max(1, BLOCK_BYTES // max(1, math.prod(rest) * dtype.itemsize))
    for first in range(0, box.sizes[0], step):
        count = min(step, box.sizes[0] - first)
        yield saved.read(name, (box.offsets[0] + first, *box.offsets[1:]), (count, *rest))


def _commit(folder: Path, saved: SavedTensors, records: dict[str, TensorRecord], files: dict[str, FileRecord]) -> int:
    """Index, state, then COMMIT. Returns the bytes of all files."""
    index = TensorIndex(format_version=manifest.FORMAT_VERSION, tensors=records)
    state = state_of(saved).model_copy(update={"format_version": manifest.FORMAT_VERSION})
    write_atomic(folder / manifest.METADATA, index.model_dump_json())
    write_atomic(folder / manifest.STATE, state.model_dump_json(indent=2))
    for name in (manifest.METADATA, manifest.STATE):
        files[name] = manifest.digest(folder / name)
    commit = Commit(format_version=manifest.FORMAT_VERSION, step=saved.commit.step, files=files)
    write_atomic(folder / COMMIT, commit.model_dump_json(indent=2))
    return commit.total_bytes()
