"""A complete checkpoint as tensors: any box of any of them, whatever boxes they were saved in.

Who resumes reads the boxes that lie on its rank; the `checkpoint` verbs read tables block by block.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from embeddings.held import Held, LocalChunk
from trainer.checkpoint import format_1, manifest
from trainer.checkpoint.manifest import TensorRecord
from trainer.checkpoint.row_states import is_row_state, read_row_state
from trainer.errors import CheckpointError

BLOCK_BYTES = 1 << 26  # read at a time: bounds what lies in memory twice
MAX_LINES = 5


class SavedTensors:
    """Of one checkpoint. A context manager: its files stay open. Raises CheckpointError where it is not complete.

    Reading checks no sha256: ask `check_files` first.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.commit = manifest.read_commit(path)
        index = manifest.read_index(path, self.commit)
        self.tensors: dict[str, TensorRecord] = (index if index.format_version > 1 else format_1.renamed(index)).tensors
        self._open: dict[str, Any] = {}
        self._closing = ExitStack()

    def __enter__(self) -> SavedTensors:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()
        self._open.clear()

    def check_files(self, share: int = 0, of: int = 1) -> None:
        """Every `of`-th file is what COMMIT says; ranks share the work. Raises CheckpointError, a line a file."""
        named = {chunk.file for record in self.tensors.values() for chunk in record.chunks}
        manifest.check_files(self.path, self.commit, sorted(set(self.commit.files) | named)[share::of])

    def problems(self, wanted: Mapping[str, Held]) -> list[str]:
        """A line for each tensor that is missing, of another size or dtype, or not saved in full; another tower differs
        in hundreds, of which the first few are told."""
        problems = [line for name, held in wanted.items() if (line := self._problem(name, held))]
        if len(problems) > MAX_LINES:
            left_out = len(problems) - MAX_LINES + 1
            problems[MAX_LINES - 1 :] = [
                f"checkpoint {self.path}: {left_out} more tensors do not fit → the model must be the one that was "
                "saved → use the run's own config.toml"
            ]
        return problems

    def read_into(self, name: str, chunk: LocalChunk) -> None:
        """Fills the chunk, block by block."""
        for block in blocks(chunk):
            block.tensor.copy_(self.read(name, block.offsets, block.sizes))

    def read_held(self, name: str, held: Held) -> None:
        """Fills all that this process holds of a tensor. A row-wise state saved under another number of column shards
        is converted (see row_states)."""
        converts = is_row_state(name, held.size) and self.tensors[name].size[1] != held.size[1]
        for chunk in held.chunks:
            if converts:
                for block in blocks(chunk):
                    read_row_state(self, name, block, held.size[1])
            else:
                self.read_into(name, chunk)

    def read(self, name: str, offsets: tuple[int, ...] = (), sizes: tuple[int, ...] | None = None) -> torch.Tensor:
        """A box of a tensor, or all of it. Raises KeyError: there is none of this name."""
        record = self.tensors[name]
        sizes = tuple(record.size) if sizes is None else sizes
        offsets = offsets or (0,) * len(sizes)
        result = torch.empty(sizes, dtype=manifest.torch_dtype(record.dtype))
        for saved in record.chunks:
            low = [max(a, b) for a, b in zip(offsets, saved.offsets, strict=True)]
            ends = zip(offsets, sizes, saved.offsets, saved.sizes, strict=True)
            high = [min(a + m, b + n) for a, m, b, n in ends]
            if any(end <= start for start, end in zip(low, high, strict=True)):
                continue
            source = _box(low, high, saved.offsets)
            target = _box(low, high, offsets)
            result[target] = self._stored(saved.file, saved.key, source, len(saved.sizes))
        return result

    def _stored(self, file: str, key: str, box: tuple[slice, ...], dimensions: int) -> torch.Tensor:
        try:
            if not dimensions:
                whole: torch.Tensor = self._file(file).get_tensor(key)
                return whole
            stored = self._file(file).get_slice(key)
            flat = len(stored.get_shape()) < dimensions  # row-wise states of format 1
            part: torch.Tensor = stored[box[:1] if flat else box]
            return part.unsqueeze(1) if flat else part
        except (SafetensorError, OSError) as error:
            raise self._unreadable(file, error) from error

    def _file(self, name: str) -> Any:
        """Memory-mapped. A pickle in its place is refused, not run."""
        if name not in self._open:
            try:
                self._open[name] = self._closing.enter_context(safe_open(self.path / name, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise self._unreadable(name, error) from error
        return self._open[name]

    def _unreadable(self, file: str, error: Exception) -> CheckpointError:
        return CheckpointError(
            f"checkpoint {self.path}: file {file} cannot be read as safetensors ({error}) → nothing else is read → "
            "use an older one"
        )

    def _problem(self, name: str, held: Held) -> str:
        record = self.tensors.get(name)
        if record is None:
            return (
                f"checkpoint {self.path}: tensor {name} is missing → the model is not the one that saved → use the "
                "run's own config.toml"
            )
        size, dtype = tuple(record.size), str(held.dtype).removeprefix("torch.")
        both_row_states = is_row_state(name, size) and is_row_state(name, held.size) and size[0] == held.size[0]
        if size != held.size and not both_row_states:
            return (
                f"checkpoint {self.path}: tensor {name} is {list(size)}, the model's is {list(held.size)} → sizes must "
                "agree → use the run's own config.toml"
            )
        if record.dtype != dtype:
            return (
                f"checkpoint {self.path}: tensor {name} is {record.dtype}, the model's is {dtype} → a resumed run "
                "keeps its dtypes → use the run's own config.toml, or --init-from, which converts"
            )
        saved, wanted = sum(math.prod(chunk.sizes) for chunk in record.chunks), math.prod(size)
        if saved != wanted:
            return (
                f"checkpoint {self.path}: {saved} of {wanted} values of {name} were saved → all are needed → use an "
                "older checkpoint"
            )
        return ""


def _box(low: Sequence[int], high: Sequence[int], origin: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(start - zero, end - zero) for start, end, zero in zip(low, high, origin, strict=True))


def blocks(chunk: LocalChunk) -> Iterator[LocalChunk]:
    """The chunk cut along its first dimension."""
    if not chunk.sizes:
        yield chunk
        return
    row_bytes = max(1, math.prod(chunk.sizes[1:]) * chunk.tensor.element_size())
    step = max(1, BLOCK_BYTES // row_bytes)
    for start in range(0, chunk.sizes[0], step):
        part = chunk.tensor[start : start + step]
        yield LocalChunk((chunk.offsets[0] + start, *chunk.offsets[1:]), part)
