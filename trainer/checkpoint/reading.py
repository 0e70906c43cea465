"""A complete checkpoint as tensors: any box of any of them, whatever boxes they were saved in.

Who resumes reads the boxes that lie on its rank; the `checkpoint` verbs read tables block by block.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack

import torch

from embeddings.held import Held, LocalChunk
from trainer.checkpoint import format_1, manifest
from trainer.checkpoint.folder import COMMIT, Folder, Location, sibling
from trainer.checkpoint.index_check import check_base, check_index
from trainer.checkpoint.manifest import Chunk, DamagedError, TensorIndex, TensorRecord
from trainer.checkpoint.row_states import is_row_state, read_row_state
from trainer.checkpoint.tensor_file import TensorFile
from trainer.errors import CheckpointError

BLOCK_BYTES = 1 << 26  # read at a time: bounds what lies in memory twice
MAX_LINES = 5


class SavedTensors:
    """Of one checkpoint, a difference read over its base. A context manager: its files stay open. Raises DamagedError
    where it is not complete.

    Reading checks no sha256: ask `check_files` first.
    """

    def __init__(self, path: Location) -> None:
        self.path = path
        self._folder = Folder(path)
        self.commit = manifest.read_commit(path)
        self.index = self._read_index()
        self.tensors: dict[str, TensorRecord] = self.index.tensors
        self._open: dict[str, TensorFile] = {}
        self._closing = ExitStack()
        self.base = None if self.commit.base is None else self._find_base(self.commit.base)
        if self.base is not None:
            check_base(str(self._folder), self.index, self.base.index)

    def __enter__(self) -> SavedTensors:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()
        self._open.clear()
        if self.base is not None:
            self.base.__exit__()

    def chain(self) -> list[SavedTensors]:
        """The full one, then the differences in order, this one last."""
        return [*(self.base.chain() if self.base is not None else ()), self]

    def check_files(self, share: int = 0, of: int = 1) -> None:
        """Every `of`-th file of the chain is what COMMIT says; ranks share the work. Raises DamagedError, a line a
        file."""
        if self.base is not None:
            self.base.check_files(share, of)
        named = {chunk.file for record in self.tensors.values() for chunk in record.chunks}
        manifest.check_files(self.path, self.commit, sorted(set(self.commit.files) | named)[share::of])

    def _read_index(self) -> TensorIndex:
        """metadata.json under the names of today, when it can be one."""
        index = manifest.read_index(self.path, self.commit)
        if index.format_version == 1:
            try:
                index = format_1.renamed(index)
            except (KeyError, IndexError, ZeroDivisionError) as error:
                raise DamagedError(
                    f"checkpoint {self._folder}: {manifest.METADATA} is none of format 1 ({type(error).__name__}) → "
                    "tables have weights, and rows → use an older checkpoint"
                ) from error
        check_index(str(self._folder), index, self.commit)
        return index

    def _find_base(self, base: manifest.Base) -> SavedTensors:
        path = sibling(self.path, base.name)
        try:
            found = hashlib.sha256(Folder(path).read(COMMIT)).hexdigest()
        except OSError:
            found = ""
        if found != base.sha256:
            why = "is not the one it was written for" if found else f"has no {COMMIT}"
            raise DamagedError(
                f"checkpoint {self._folder}: its base {base.name} {why} → a difference is read over its own base → use "
                "an older one"
            )
        return SavedTensors(path)

    def problems(self, wanted: Mapping[str, Held]) -> list[str]:
        """A line for each tensor that is missing, of another size or dtype, or not saved in full; another tower differs
        in hundreds, of which the first few are told."""
        problems = [line for name, held in wanted.items() if (line := self._problem(name, held))]
        if len(problems) > MAX_LINES:
            left_out = len(problems) - MAX_LINES + 1
            problems[MAX_LINES - 1 :] = [
                f"checkpoint {self._folder}: {left_out} more tensors do not fit → the model must be the one that was "
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
        if self.base is None or _is_whole(record):
            result = torch.empty(sizes, dtype=manifest.torch_dtype(record.dtype))
        else:
            result = self.base.read(name, offsets, sizes)
        for saved in record.chunks:
            low = [max(a, b) for a, b in zip(offsets, saved.offsets, strict=True)]
            ends = zip(offsets, sizes, saved.offsets, saved.sizes, strict=True)
            high = [min(a + m, b + n) for a, m, b, n in ends]
            if all(start < end for start, end in zip(low, high, strict=True)):
                try:
                    self._lay(saved, _box(low, high, saved.offsets), result[_box(low, high, offsets)])
                except (ValueError, OSError, RuntimeError, IndexError) as error:  # the last two: torch, of shapes
                    raise self._unreadable(saved.file, error) from error
        return result

    def _lay(self, saved: Chunk, box: tuple[slice, ...], target: torch.Tensor) -> None:
        """A part of a chunk (as a box in it) into its place."""
        file = self._file(saved.file)
        if not box:
            target.copy_(file.read(saved.key))
        elif not saved.positions:
            stored = file.read(saved.key, box[0].start, box[0].stop)
            flat = stored.dim() < len(box)  # row-wise states of format 1
            part = stored.unsqueeze(1) if flat else stored[(slice(None), *box[1:])]
            if part.shape != target.shape:  # copy_ would repeat it
                raise ValueError(f"{saved.key!r} is {list(file.entries[saved.key].shape)}, not {saved.sizes}")
            target.copy_(part)
        else:
            self._lay_positions(file, saved, box, target)

    def _lay_positions(self, file: TensorFile, saved: Chunk, box: tuple[slice, ...], target: torch.Tensor) -> None:
        """Elements that lie in the box, among others that stay. An element is what stands under one position: a row's
        columns of this chunk, or a single number."""
        rest = file.entries[saved.key].shape[1:] if saved.key in file.entries else ()
        in_row = math.prod(saved.sizes[1:]) // max(1, math.prod(rest))  # elements in one step of the first dimension
        if in_row > 1 and any(part != slice(0, size) for part, size in zip(box[1:], saved.sizes[1:], strict=True)):
            raise ValueError(f"single numbers of {saved.key!r} are read in whole rows")
        positions = file.read(saved.positions).long()
        bounds = torch.tensor([box[0].start * in_row, box[0].stop * in_row])
        first, last = torch.searchsorted(positions, bounds).tolist()
        values = file.read(saved.key, first, last)
        if in_row == 1 and rest:
            values = values[(slice(None), *box[1:])]
        elements = target if in_row == 1 else target.view(-1, *rest)
        elements[positions[first:last] - bounds[0]] = values.view(-1, *elements.shape[1:])

    def _file(self, name: str) -> TensorFile:
        """A pickle in its place is refused, not run."""
        if name not in self._open:
            self._open[name] = TensorFile(self._closing.enter_context(self._folder.open(name)))
        return self._open[name]

    def _unreadable(self, file: str, error: Exception) -> CheckpointError:
        return DamagedError(
            f"checkpoint {self._folder}: file {file} cannot be read as safetensors ({error}) → nothing else is read → "
            "use an older one"
        )

    def _problem(self, name: str, held: Held) -> str:
        record = self.tensors.get(name)
        if record is None:
            return (
                f"checkpoint {self._folder}: tensor {name} is missing → the model is not the one that saved → use the "
                "run's own config.toml"
            )
        size, dtype = tuple(record.size), str(held.dtype).removeprefix("torch.")
        both_row_states = is_row_state(name, size) and is_row_state(name, held.size) and size[0] == held.size[0]
        if size != held.size and not both_row_states:
            return (
                f"checkpoint {self._folder}: tensor {name} is {list(size)}, the model's is {list(held.size)} → sizes "
                "must agree → use the run's own config.toml"
            )
        if record.dtype != dtype:
            return (
                f"checkpoint {self._folder}: tensor {name} is {record.dtype}, the model's is {dtype} → a resumed run "
                "keeps its dtypes → use the run's own config.toml, or --init-from, which converts"
            )
        saved, wanted = sum(math.prod(chunk.sizes) for chunk in record.chunks), math.prod(size)
        if self.base is not None and not _is_whole(record):
            return self.base._problem(name, held)
        if saved != wanted:
            return (
                f"checkpoint {self._folder}: {saved} of {wanted} values of {name} were saved → all are needed → use an "
                "older checkpoint"
            )
        return ""


def _is_whole(record: TensorRecord) -> bool:
    """Whether a difference holds all of a tensor, so that its base is not asked."""
    return all(not chunk.positions for chunk in record.chunks) and sum(
        math.prod(chunk.sizes) for chunk in record.chunks
    ) >= math.prod(record.size)


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
