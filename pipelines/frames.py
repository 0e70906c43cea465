"""A window's batches as one stretch of bytes, and back without a copy: arrays apart from what holds them.

Many thousand arrays pass here every second, so each costs one line of a table and no pickle of its own. A frame is
[length of the head][head][arrays, each aligned]. The head holds how batches are put together, which is the same for
nearly all of them, and each array's place, type and shape.
"""

from __future__ import annotations

import ast
import pickle
import sys
from collections.abc import Callable
from dataclasses import fields
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.batch import Array, Batch, FieldIds, TableIds

ALIGNMENT = 64
Bytes = npt.NDArray[np.uint8]
Builder = Callable[[list[Any], list[Any]], Any]  # (arrays, plain values) → the value
HOLDERS = {kind.__name__: kind for kind in (Batch, TableIds, FieldIds)}
NAMES = {kind: tuple(field.name for field in fields(kind)) for kind in HOLDERS.values()}


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
        plans = []
        for batch in batches:
            plain: list[Any] = []
            first, places = len(arrays), dict[int, int]()
            plan = _take_apart(batch, arrays, plain, places, first)
            plans.append((sys.intern(repr(plan)), plain, first, len(arrays)))
        types = sorted({array.dtype.str for array in arrays})
        code = {name: index for index, name in enumerate(types)}
        table, offset = [], 0
        for array in arrays:
            table.append((offset, code[array.dtype.str], array.shape))
            offset += array.nbytes + -array.nbytes % ALIGNMENT
        head = pickle.dumps((plans, types, table), protocol=5)
        begin = self.ends[-1] if self.ends else 0
        base = _body(begin, len(head))
        self._reserve(base + offset)
        memory = self._memory
        memory[begin : begin + 8].view(np.int64)[0] = len(head)
        memory[begin + 8 : begin + 8 + len(head)] = np.frombuffer(head, np.uint8)
        for array, (place, _, shape) in zip(arrays, table, strict=True):
            np.ndarray(shape, array.dtype, memory, base + place)[...] = array
        self.ends.append(base + offset)

    def frames(self) -> Bytes:
        """All of them; a view."""
        return self._memory[: self.ends[-1] if self.ends else 0]

    def _reserve(self, size: int) -> None:
        if size > len(self._memory):
            used = self.frames()
            self._memory = np.empty(size + size // 2, np.uint8)
            self._memory[: len(used)] = used


def unpack(memory: Bytes, begin: int = 0) -> list[Batch]:
    """The batches of the frame that begins there; their arrays are views of `memory`."""
    length = int(memory[begin : begin + 8].view(np.int64)[0])
    plans, types, table = pickle.loads(memory[begin + 8 : begin + 8 + length].data)  # noqa: S301 - of this run's tasks
    dtypes, base = [np.dtype(name) for name in types], _body(begin, length)
    arrays = [np.ndarray(shape, dtypes[code], memory, base + place) for place, code, shape in table]
    return [_builder(plan)(arrays[first:last], plain) for plan, plain, first, last in plans]


def _body(begin: int, head: int) -> int:
    end = begin + 8 + head
    return end + -end % ALIGNMENT


def _take_apart(value: Any, arrays: list[Array], plain: list[Any], places: dict[int, int], first: int) -> Any:
    """How the value is put together again. An array that stands in several places is kept once."""
    kind = type(value)
    if kind is np.ndarray:
        place = places.get(id(value))
        if place is None:
            place = places[id(value)] = len(arrays) - first
            arrays.append(value)
        return place
    if kind is dict:
        return tuple((key, _take_apart(each, arrays, plain, places, first)) for key, each in value.items())
    if kind in NAMES:
        parts = [_take_apart(getattr(value, name), arrays, plain, places, first) for name in NAMES[kind]]
        return [kind.__name__, *parts]
    plain.append(value)
    return -len(plain)


@lru_cache(maxsize=256)
def _builder(plan: str) -> Builder:
    return _compile(ast.literal_eval(plan))


def _compile(plan: Any) -> Builder:
    """The opposite of `_take_apart`, made once a plan."""
    if isinstance(plan, int):
        return (lambda arrays, plain: arrays[plan]) if plan >= 0 else (lambda arrays, plain: plain[-plan - 1])
    if isinstance(plan, tuple):
        parts = [(key, _compile(each)) for key, each in plan]
        return lambda arrays, plain: {key: build(arrays, plain) for key, build in parts}
    kind, builders = HOLDERS[plan[0]], [_compile(each) for each in plan[1:]]
    return lambda arrays, plain: kind(*[build(arrays, plain) for build in builders])
