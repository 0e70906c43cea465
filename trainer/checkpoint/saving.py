"""Writing a checkpoint: every rank its own boxes, rank 0 the index, the state, then COMMIT."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import save_file

from embeddings.held import Held, LocalChunk
from trainer.checkpoint import manifest
from trainer.checkpoint.agreement import agree, gather
from trainer.checkpoint.manifest import Chunk, Commit, FileRecord, TensorIndex, TensorRecord
from trainer.errors import CheckpointError
from trainer.run_dir import COMMIT, fsync_directory, write_atomic

MAX_FILE_BYTES = 2**30  # bounds what a rank copies at once: safetensors serialises a file in memory


@dataclass(frozen=True)
class Written:
    """What one rank holds, as records without chunks (a table that is not sharded over it may be missing), and what it
    put into its files."""

    records: dict[str, TensorRecord]
    chunks: dict[str, list[Chunk]]
    files: dict[str, FileRecord]


def save_tensors(
    path: Path,
    tensors: Mapping[str, Held],
    step: int,
    state: str,
    group: dist.ProcessGroup | None = None,
    max_file_bytes: int = MAX_FILE_BYTES,
) -> None:
    """Collective over `group` (gloo; None = the default one, or one process): the checkpoint is complete on return.

    state: content of state.json, of rank 0. Raises CheckpointError on every rank if one cannot write.
    """
    rank = dist.get_rank(group) if dist.is_initialized() else 0
    world_size = dist.get_world_size(group) if dist.is_initialized() else 1
    with agree(group):
        if rank == 0:
            remove_checkpoint(path)  # what an interrupted save left there
            path.mkdir(parents=True)
    with agree(group):
        chunks, files = _write(path, rank, _own(tensors, rank, world_size), max_file_bytes)
        written = Written({name: _record(held) for name, held in tensors.items()}, chunks, files)
    of_ranks = gather(written, group)
    with agree(group):
        if rank == 0:
            _commit(path, of_ranks, step, state)


def remove_checkpoint(path: Path) -> None:
    """COMMIT first: what is half removed is not complete."""
    if path.exists():
        (path / COMMIT).unlink(missing_ok=True)
        shutil.rmtree(path)


def _own(tensors: Mapping[str, Held], rank: int, world_size: int) -> list[tuple[str, LocalChunk]]:
    """(tensor, box) that this rank is to write: replicated tensors are dealt over the ranks."""
    replicated = [name for name, held in tensors.items() if held.replicated]
    mine = set(replicated[rank::world_size])
    return [
        (name, chunk)
        for name, held in tensors.items()
        if not held.replicated or name in mine
        for chunk in held.chunks
        if chunk.tensor.numel()
    ]


def _write(
    path: Path, rank: int, boxes: list[tuple[str, LocalChunk]], max_file_bytes: int
) -> tuple[dict[str, list[Chunk]], dict[str, FileRecord]]:
    chunks: dict[str, list[Chunk]] = {}
    files: dict[str, FileRecord] = {}
    for number, of_file in enumerate(_files(boxes, max_file_bytes)):
        file = f"rank_{rank:05d}_{number:03d}.safetensors"
        keyed = {f"{name}@{','.join(map(str, chunk.offsets))}": (name, chunk) for name, chunk in of_file}
        try:
            save_file({key: _copy(chunk.tensor) for key, (_, chunk) in keyed.items()}, path / file)
        except SafetensorError as error:  # what an OSError becomes in it: a full disk, no permission
            raise CheckpointError(
                f"checkpoint: {path / file} cannot be written ({error}) → its files must be writable, with room on "
                "the disk → make room or choose another --run-dir"
            ) from error
        with (path / file).open("rb") as opened:
            os.fsync(opened.fileno())
        files[file] = manifest.digest(path / file)
        for key, (name, chunk) in keyed.items():
            chunks.setdefault(name, []).append(
                Chunk(offsets=list(chunk.offsets), sizes=list(chunk.sizes), file=file, key=key)
            )
    fsync_directory(path)
    return chunks, files


def _files(boxes: list[tuple[str, LocalChunk]], max_file_bytes: int) -> list[list[tuple[str, LocalChunk]]]:
    """Boxes cut into files of about max_file_bytes."""
    files: list[list[tuple[str, LocalChunk]]] = []
    room = 0
    for name, chunk in boxes:
        size = chunk.tensor.nbytes
        if not files or size > room:
            files.append([])
            room = max_file_bytes
        files[-1].append((name, chunk))
        room -= size
    return files


def _record(held: Held) -> TensorRecord:
    return TensorRecord(dtype=str(held.dtype).removeprefix("torch."), size=list(held.size), chunks=[])


def _commit(path: Path, written: list[Written], step: int, state: str) -> None:
    records = {
        name: record.model_copy(update={"chunks": [c for of_rank in written for c in of_rank.chunks.get(name, [])]})
        for name, record in sorted({name: r for of_rank in written for name, r in of_rank.records.items()}.items())
    }
    files = {name: record for of_rank in written for name, record in of_rank.files.items()}
    index = TensorIndex(format_version=manifest.FORMAT_VERSION, tensors=records)
    write_atomic(path / manifest.METADATA, index.model_dump_json())
    write_atomic(path / manifest.STATE, state)
    for name in (manifest.METADATA, manifest.STATE):
        files[name] = manifest.digest(path / name)
    commit = Commit(format_version=manifest.FORMAT_VERSION, step=step, files=files)
    fsync_directory(path.parent)
    write_atomic(path / COMMIT, commit.model_dump_json(indent=2))


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    """On the host, contiguous, and sharing memory with no other entry of the file."""
    return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach())
