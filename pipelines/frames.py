"""A window's batches as one stretch of bytes, and back without a copy.

Many thousand arrays pass here every second, so none costs a pickle or a copy of its own: all arrays of one type lie end
to end, written by one concatenation, and are cut again by their lengths. A frame is [length of the head][head][the
arrays, type by type]; the head says how batches are put together and how long each array is.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipelines.batch import Array, Batch, FieldIds, TableIds

ALIGNMENT = 64
DICTIONARIES = (
    "dense", "history_lengths", "times", "clocks", "action_clocks", "labels", "weights", "metric_weights", "offsets",
)  # fmt: skip
PLAIN = ("position", "rows", "filler", "retries")
ARRAYS = ("candidate_lengths", "request_time", "request_clock", "status", "user", "request", "file", "row")
Bytes = npt.NDArray[np.uint8]


class Form(NamedTuple):
    """What a batch consists of, its arrays apart: keys of its dictionaries, in their order."""

    tables: tuple[str, ...]
    fields: tuple[tuple[str, str, bool], ...]  # column, table, whether it has lengths
    keys: tuple[tuple[str, ...], ...]  # of DICTIONARIES


class Packer:
    """Frames one after the other, in memory that serves task after task: fresh pages are dearer than the copy into
    them."""

    def __init__(self) -> None:
        self._memory = np.empty(1 << 20, np.uint8)
        self.ends: list[int] = []

    def clear(self) -> None:
        """Begins anew. What `frames` gave before is overwritten: it has been copied into the object store by then."""
        self.ends = []

    def add(self, batches: list[Batch]) -> None:
        """One window's batches of a rank."""
        arrays: list[Array] = []
        heads = []
        forms: dict[Form, Form] = {}  # equal ones are one object, which the head holds once
        for batch in batches:
            form = form_of(batch)
            flat = arrays_of(batch)
            once = {id(array): array for array in flat}  # an array that stands in several places is kept once
            places = None
            if len(once) < len(flat):
                number = {key: place for place, key in enumerate(once)}
                places = [number[id(array)] for array in flat]
            plain = {name: getattr(batch, name) for name in PLAIN}
            heads.append((forms.setdefault(form, form), plain, len(once), places))
            arrays += once.values()
        types = list(dict.fromkeys(array.dtype for array in arrays))
        code = {kind: index for index, kind in enumerate(types)}
        codes = bytes([code[array.dtype] for array in arrays])
        lengths = np.array([array.size for array in arrays], np.int64)
        shapes = {index: array.shape for index, array in enumerate(arrays) if array.ndim != 1}
        names = [kind.str for kind in types]
        self._write(pickle.dumps((heads, names, codes, lengths.tobytes(), shapes), protocol=5), arrays, types, codes)

    def frames(self) -> Bytes:
        """All of them; a view."""
        return self._memory[: self.ends[-1] if self.ends else 0]

    def _write(self, head: bytes, arrays: list[Array], types: list[np.dtype[Any]], codes: bytes) -> None:
        groups: list[list[Array]] = [[] for _ in types]
        for array, code in zip(arrays, codes, strict=True):
            groups[code].append(array if array.ndim == 1 else array.reshape(-1))
        begin = self.ends[-1] if self.ends else 0
        sizes = [sum(array.size for array in group) for group in groups]
        places = _places(_aligned(begin + 8 + len(head)), sizes, types)
        self._reserve(places[-1])
        self._memory[begin : begin + 8].view(np.int64)[0] = len(head)
        self._memory[begin + 8 : begin + 8 + len(head)] = np.frombuffer(head, np.uint8)
        for group, place, size, kind in zip(groups, places, sizes, types, strict=False):
            np.concatenate(group, out=np.ndarray(size, kind, self._memory, place))
        self.ends.append(places[-1])

    def _reserve(self, size: int) -> None:
        if size > len(self._memory):
            used = self.frames()
            self._memory = np.empty(size + size // 2, np.uint8)
            self._memory[: len(used)] = used


def unpack(memory: Bytes, begin: int = 0) -> list[Batch]:
    """The batches of the frame that begins there; their arrays are views of `memory`."""
    length = int(memory[begin : begin + 8].view(np.int64)[0])
    head = memory[begin + 8 : begin + 8 + length].data
    heads, names, codes, packed_lengths, shapes = pickle.loads(head)  # noqa: S301 - made by a task of this run
    types = [np.dtype(name) for name in names]
    lengths, code_of = np.frombuffer(packed_lengths, np.int64), np.frombuffer(codes, np.uint8)
    own = [lengths[code_of == code] for code in range(len(types))]
    sizes = [int(each.sum()) for each in own]
    places = _places(_aligned(begin + 8 + length), sizes, types)
    cut = [
        _slices(np.ndarray(size, kind, memory, place), each.tolist())
        for kind, size, place, each in zip(types, sizes, places, own, strict=False)
    ]
    arrays = [next(cut[code]) for code in codes]
    for index, shape in shapes.items():
        arrays[index] = arrays[index].reshape(shape)
    batches, first = [], 0
    for form, plain, count, again in heads:
        flat = arrays[first : first + count]
        first += count
        batches.append(_rebuilt(form, plain, flat if again is None else [flat[i] for i in again]))
    return batches


def form_of(batch: Batch) -> Form:
    """A batch without its arrays."""
    fields = tuple((name, field.table, field.lengths is not None) for name, field in batch.fields.items())
    return Form(tuple(batch.tables), fields, tuple(tuple(getattr(batch, name)) for name in DICTIONARIES))


def arrays_of(batch: Batch) -> list[Array]:
    """Its arrays, in the order in which `_rebuilt` takes them."""
    flat: list[Array] = []
    for table in batch.tables.values():
        flat += (table.ids, table.counts)
    for field in batch.fields.values():
        flat += (field.inverse,) if field.lengths is None else (field.inverse, field.lengths)
    for name in DICTIONARIES:
        flat += getattr(batch, name).values()
    return flat + [getattr(batch, name) for name in ARRAYS]


def _rebuilt(form: Form, plain: dict[str, Any], flat: list[Any]) -> Batch:
    take = iter(flat).__next__
    tables = {name: TableIds(take(), take()) for name in form.tables}
    fields = {name: FieldIds(table, take(), take() if ragged else None) for name, table, ragged in form.fields}
    parts = dict(plain)
    for name, keys in zip(DICTIONARIES, form.keys, strict=True):
        parts[name] = {key: take() for key in keys}
    for name in ARRAYS:
        parts[name] = take()
    return Batch(tables=tables, fields=fields, **parts)


def _slices(values: Array, lengths: list[int]) -> Iterator[Array]:
    return (values[begin:end] for begin, end in pairwise(accumulate(lengths, initial=0)))


def _places(begin: int, sizes: list[int], types: list[np.dtype[Any]]) -> list[int]:
    """Where each type's arrays begin, and the end of the last."""
    places = [begin]
    for size, kind in zip(sizes, types, strict=True):
        places.append(_aligned(places[-1] + size * kind.itemsize))
    return places


def _aligned(offset: int) -> int:
    return offset + -offset % ALIGNMENT
