"""Writing a checkpoint: every rank its own blocks, rank 0 the index, the state, then COMMIT."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch.distributed as dist

from embeddings.held import Held
from trainer.checkpoint import manifest
from trainer.checkpoint.agreement import agree, gather
from trainer.checkpoint.blocks import Block, small_blocks, table_blocks
from trainer.checkpoint.folder import COMMIT, Folder
from trainer.checkpoint.manifest import Chunk, Commit, FileRecord, TensorIndex, TensorRecord
from trainer.checkpoint.snapshot import Snapshot, small_tensors
from trainer.checkpoint.tensor_file import TensorFileWriter
from trainer.errors import CheckpointError

MAX_FILE_BYTES = 2**30  # about: of a file of tensors

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Written:
    """What one rank holds, as records without chunks (a table that is not sharded over it may be missing), and what it
    put into its files."""

    records: dict[str, TensorRecord]
    chunks: dict[str, list[Chunk]]
    files: dict[str, FileRecord]


def save_tensors(
    path: Path | str,
    tensors: Mapping[str, Held],
    step: int,
    state: str,
    group: dist.ProcessGroup | None = None,
    max_file_bytes: int = MAX_FILE_BYTES,
) -> None:
    """Collective over `group` (gloo; None = the default one, or one process): a full checkpoint, complete on return.

    state: content of state.json, of rank 0. Raises CheckpointError on every rank if one cannot write.
    """
    rank = dist.get_rank(group) if dist.is_initialized() else 0
    world_size = dist.get_world_size(group) if dist.is_initialized() else 1
    snapshot = Snapshot(tensors)
    blocks = chain(table_blocks(snapshot), small_blocks(small_tensors(tensors), rank, world_size, None))
    commit = Commit(format_version=manifest.FORMAT_VERSION, step=step, files={})
    write_checkpoint(Folder(path), lambda: blocks, records_of(tensors), commit, state, group, max_file_bytes)


def records_of(tensors: Mapping[str, Held]) -> dict[str, TensorRecord]:
    """Names, dtypes and sizes; no chunks yet."""
    return {
        name: TensorRecord(dtype=str(held.dtype).removeprefix("torch."), size=list(held.size), chunks=[])
        for name, held in tensors.items()
    }


def write_checkpoint(
    folder: Folder,
    blocks: Callable[[], Iterable[Block]],
    records: dict[str, TensorRecord],
    commit: Commit,
    state: str,
    group: dist.ProcessGroup | None = None,
    max_file_bytes: int = MAX_FILE_BYTES,
) -> int:
    """Collective. blocks: of this rank. commit, state: of rank 0, the commit without its files. Returns the bytes of
    all files on rank 0, elsewhere 0.

    Raises CheckpointError on every rank if one cannot write; what was written is then removed as far as it can be.
    """
    rank = dist.get_rank(group) if dist.is_initialized() else 0
    try:
        with agree(group):
            if rank == 0:
                folder.create()
        with agree(group):
            chunks, files = _write(folder, rank, blocks(), max_file_bytes)
        of_ranks = gather(Written(records, chunks, files), group)
        with agree(group):
            size = _commit(folder, of_ranks, commit, state) if rank == 0 else 0
    except CheckpointError:
        if rank == 0:
            with suppress(OSError):  # makes room on a full disk; a complete one of an earlier attempt stays
                if folder.size(COMMIT) is None:
                    folder.remove()
        raise
    return size


def _write(
    folder: Folder, rank: int, blocks: Iterable[Block], max_file_bytes: int
) -> tuple[dict[str, list[Chunk]], dict[str, FileRecord]]:
    chunks: dict[str, list[Chunk]] = {}
    files: dict[str, FileRecord] = {}
    for number, of_file in enumerate(_files(blocks, max_file_bytes)):
        file = f"rank_{rank:05d}_{number:03d}.safetensors"
        try:
            files[file] = _write_file(folder, file, of_file)
        except OSError as error:
            raise CheckpointError(
                f"checkpoint: {folder}/{file} cannot be written ({error.strerror or error}) → its files must be "
                "writable, with room on the disk → make room or choose another --run-dir or [checkpoint] store"
            ) from error
        for stored in (stored for block in of_file for stored in block.stored if stored.name):
            chunks.setdefault(stored.name, []).append(
                Chunk(
                    offsets=list(stored.offsets),
                    sizes=list(stored.sizes),
                    file=file,
                    key=stored.entry.key,
                    positions=stored.positions,
                )
            )
    folder.settle()
    return chunks, files


def _write_file(folder: Folder, name: str, blocks: list[Block]) -> FileRecord:
    with folder.sink(name) as write:
        writer = TensorFileWriter(write, [stored.entry for block in blocks for stored in block.stored])
        for block in blocks:
            for content in block.content():
                writer.write(content)
        return writer.close()


def _files(blocks: Iterable[Block], max_file_bytes: int) -> Iterable[list[Block]]:
    """Blocks cut into files of about max_file_bytes."""
    of_file: list[Block] = []
    room = max_file_bytes
    for block in blocks:
        if of_file and block.bytes > room:
            yield of_file
            of_file, room = [], max_file_bytes
        of_file.append(block)
        room -= block.bytes
    if of_file:
        yield of_file


def _commit(folder: Folder, written: list[Written], commit: Commit, state: str) -> int:
    records = {
        name: record.model_copy(update={"chunks": [c for of_rank in written for c in of_rank.chunks.get(name, [])]})
        for name, record in sorted({name: r for of_rank in written for name, r in of_rank.records.items()}.items())
    }
    files = {name: record for of_rank in written for name, record in of_rank.files.items()}
    index = TensorIndex(format_version=manifest.FORMAT_VERSION, tensors=records)
    for name, content in ((manifest.METADATA, index.model_dump_json()), (manifest.STATE, state)):
        folder.write(name, content.encode())
        files[name] = manifest.record_of(content.encode())
    folder.settle()
    commit = commit.model_copy(update={"files": files})
    folder.write(COMMIT, commit.model_dump_json(indent=2).encode())
    return commit.total_bytes()
