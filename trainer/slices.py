"""Slices of an evaluation: which value of a field each position has, and the scores of those that are most frequent."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch.distributed as dist

from pipelines.row_columns import as_type
from trainer.wanted import OTHER

MOST_SLICES = 20
MOST_VALUES = 1 << 16  # told apart while predicting: what comes up later than so many others is OTHER
NULL = "(null)"


@dataclass(frozen=True)
class Chosen:
    """values: of the slices, the most frequent first, OTHER last where there is more; others: values in it. codes: of
    this rank's own codes, the slice of each."""

    values: tuple[str, ...]
    others: int
    codes: npt.NDArray[np.int32]


class Slicer:
    """Codes positions by their value while they are predicted, and chooses the slices when all are."""

    def __init__(self) -> None:
        self._code: dict[str, int] = {OTHER: 0}
        self._counts: Counter[str] = Counter()

    def codes(self, values_S: pa.Array, counted_S: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
        """values: strings. counted: positions that are an example of some task. [S]"""
        encoded = pc.dictionary_encode(pc.fill_null(values_S, NULL))
        names = encoded.dictionary.to_pylist()
        for name in names:
            if name not in self._code and len(self._code) < MOST_VALUES:
                self._code[name] = len(self._code)
        code_V = np.array([self._code.get(name, 0) for name in names], np.int32)
        codes_S: npt.NDArray[np.int32] = code_V[encoded.indices.to_numpy(zero_copy_only=False)] if names else code_V
        for name, count in zip(
            names, np.bincount(codes_S[counted_S], minlength=len(self._code))[code_V].tolist(), strict=True
        ):
            if count and self._code.get(name):
                self._counts[name] += count
        return codes_S

    def choose(self, group: dist.ProcessGroup | None) -> Chosen:
        """The same slices on all ranks. Collective."""
        counts, full = self._counts, len(self._code) >= MOST_VALUES
        if group is not None and dist.get_world_size(group) > 1:
            parts: list[Any] = [None] * dist.get_world_size(group)
            dist.all_gather_object(parts, (counts, full), group=group)
            counts, full = sum((part for part, _ in parts), Counter()), any(each for _, each in parts)
        ordered = sorted(counts, key=lambda name: (-counts[name], name))
        values = ordered[:MOST_SLICES]
        place = {name: slice_ for slice_, name in enumerate(values)}
        others = len(ordered) - len(values)
        if others or full:
            values = [*values, OTHER]
        of_code = np.full(len(self._code), len(values) - 1 if others or full else -1, np.int32)
        for name, code in self._code.items():
            if name in place:
                of_code[code] = place[name]
        return Chosen(tuple(values), others, of_code)


def as_words(values: pa.Array, boundaries: tuple[float, ...] = ()) -> pa.Array:
    """Values as strings: of a bucket column the intervals between its boundaries."""
    if boundaries:
        return _intervals(values, boundaries)
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    return as_type(values, pa.string())


def _intervals(values: pa.Array, boundaries: tuple[float, ...]) -> pa.Array:
    edges = [f"{edge:g}" for edge in boundaries]
    words = [f"< {edges[0]}", *(f"{a} – {b}" for a, b in pairwise(edges)), f"≥ {edges[-1]}"]
    numbers = as_type(values, pa.float64()).to_numpy(zero_copy_only=False)
    bucket = np.searchsorted(np.array(boundaries), numbers, side="right")
    return pa.DictionaryArray.from_arrays(pa.array(bucket, mask=np.isnan(numbers)), words).dictionary_decode()
