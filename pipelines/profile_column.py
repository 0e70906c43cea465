"""One column of a segment, batch after batch, summed up in bounded memory."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.batch import Int64
from pipelines.hashing import hash_strings, ids_of
from pipelines.inspect import is_list
from pipelines.profile_format import ColumnProfile, Lengths, Value
from pipelines.profile_sketches import Frequent, Keys, LowestHashes, Places
from pipelines.schema import INPUT_ROLES, TABLE_KINDS, Column

Float64 = npt.NDArray[np.float64]
TOP, TOP_OF_MANY, QUANTILES = 32, 8, 100
MICROSECONDS = {"s": 1_000_000, "ms": 1_000, "us": 1}
SENTINEL_NUMBERS = (-1, 0, -999, -9999, 2**31 - 1, -(2**31), 2**63 - 1)
SENTINEL_WORDS = ("", "-1", "null", "NULL", "none", "None", "nan", "NaN", "N/A", "unknown", "undefined")
SENTINEL_IDS = {number: str(number) for number in SENTINEL_NUMBERS} | {
    int(code): repr(word) for code, word in zip(hash_strings(pa.array(SENTINEL_WORDS)), SENTINEL_WORDS, strict=True)
}


class ColumnSketch:
    """`add` its arrays in order, then `profile`."""

    def __init__(self, spec: Column, time_unit: str) -> None:
        self.spec, self.time_unit = spec, time_unit
        self.is_id = spec.kind in ("id", "ids")
        self.rows = self.values = self.nulls = self.nans = self.null_lists = 0
        self.length_sum = self.length_squares = self.length_max = 0
        self.lengths, self.numbers = Places(), Places()
        self.frequent, self.lowest = Frequent(), LowestHashes()
        self.words: dict[int, str] = {}

    def add(self, column: pa.Array) -> None:
        """Of as many rows as it has elements."""
        self.rows += len(column)
        values = column
        if self.spec.group:
            values = self._count_lists(values)
        if self.spec.kind == "ids":
            values = _flat(values) if self.spec.group else self._count_lists(values)
        elif self.spec.kind == "vector":
            self.null_lists += 0 if self.spec.group else values.null_count
            values = _flat(values)
        self.values += len(values)
        self.nulls += values.null_count
        values = values.drop_null()
        if len(values) == 0:
            return
        if self.is_id:
            self._add_ids(values)
        else:
            self._add_numbers(_times(values, self.time_unit) if self.spec.kind == "time" else floats_of(values))

    def profile(self, types: Mapping[str, int], coverage: float, covered_files: float) -> ColumnProfile:
        """What was added, with what the footers say."""
        present = max(self.values - self.nulls - self.nans, 1)
        exact = self.frequent.exact and len(self.frequent.keys) <= TOP
        top = self.frequent.top(TOP if exact else TOP_OF_MANY)
        keeps_ids = self.is_id and self.spec.role in INPUT_ROLES and self.spec.kind in TABLE_KINDS
        return ColumnProfile(
            types=dict(types),
            coverage=coverage,
            covered_files=covered_files,
            values=self.values,
            nulls=self.nulls / max(self.values, 1),
            nans=self.nans / max(self.values, 1),
            null_lists=self.null_lists / max(self.rows, 1),
            distinct=self.lowest.distinct(),
            exact_top=exact,
            top=tuple(Value(value=self._name(at), share=self._share(at, present)) for at in top),
            sentinels=self._sentinels(present),
            quantiles=self.numbers.quantiles(QUANTILES),
            lengths=self._lengths() if self.lengths.seen else None,
            ids=tuple(
                (int(code), int(count)) for code, count in zip(self.lowest.hashes, self.lowest.counts, strict=True)
            )
            if keeps_ids
            else (),
        )

    def _count_lists(self, lists: pa.Array) -> pa.Array:
        self.null_lists += lists.null_count
        if not is_list(lists.type):  # the null type: nothing but null lists
            return pa.nulls(0)
        lengths = pc.fill_null(pc.list_value_length(lists), 0).cast(pa.int64()).to_numpy(zero_copy_only=False)
        self.lengths.add(lengths.astype(np.float64))
        self.length_sum += int(lengths.sum())
        self.length_squares += int((lengths * lengths).sum())
        self.length_max = max(self.length_max, int(lengths.max(initial=0)))
        return lists.flatten()

    def _add_ids(self, values: pa.Array) -> None:
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        counted = pc.value_counts(values)
        distinct, counts = counted.field("values"), counted.field("counts").to_numpy()
        ids = ids_of(distinct)
        self._count(ids, counts)
        if not (pa.types.is_integer(distinct.type) or pa.types.is_boolean(distinct.type)):
            self._remember(ids, distinct, counts)

    def _add_numbers(self, numbers: Float64) -> None:
        missing = np.isnan(numbers)
        self.nans += int(missing.sum())
        numbers = numbers[~missing] + 0.0  # -0.0 is 0.0
        self.numbers.add(numbers)
        keys, counts = np.unique(numbers, return_counts=True)
        self._count(keys, counts)

    def _count(self, keys: Keys, counts: Int64) -> None:
        self.frequent.add(keys, counts)
        self.lowest.add(keys.view(np.int64), counts)

    def _remember(self, ids: Int64, words: pa.Array, counts: Int64) -> None:
        """Texts of what may become a frequent value; those that did not are forgotten."""
        for at in np.argsort(-counts, kind="stable")[: 2 * TOP]:
            self.words[int(ids[at])] = words[int(at)].as_py()
        if len(self.words) > self.frequent.limit:
            known = set(self.frequent.keys[self.frequent.top(self.frequent.limit // 2)].tolist())
            self.words = {key: word for key, word in self.words.items() if key in known}

    def _name(self, at: int) -> str:
        key = self.frequent.keys[at]
        if self.is_id:
            return repr(self.words[int(key)]) if int(key) in self.words else str(int(key))
        return f"{float(key):.15g}"

    def _share(self, at: int, present: int) -> float:
        return int(self.frequent.counts[at]) / present

    def _sentinels(self, present: int) -> dict[str, float]:
        known = SENTINEL_IDS
        if not self.is_id:
            unit = MICROSECONDS[self.time_unit] if self.spec.kind == "time" else 1
            known = {number * unit: str(number) for number in SENTINEL_NUMBERS}
        places = {key: at for at, key in enumerate(self.frequent.keys.tolist()) if key in known}
        return {known[int(key)]: self._share(at, present) for key, at in sorted(places.items())}

    def _lengths(self) -> Lengths:
        mean = self.length_sum / self.lengths.seen
        variance = max(self.length_squares / self.lengths.seen - mean * mean, 0.0)
        return Lengths(mean=mean, deviation=variance**0.5, max=self.length_max, quantiles=self.lengths.quantiles(10))


def _flat(values: pa.Array) -> pa.Array:
    return values.flatten() if is_list(values.type) else pa.nulls(0)


def floats_of(values: pa.Array) -> Float64:
    """float64 of integers, floats, booleans or decimals; null as NaN."""
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_boolean(values.type):
        values = values.cast(pa.int8())
    floats: Float64 = values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return floats


def _times(values: pa.Array, unit: str) -> Float64:
    """µs since 1970; float64 is exact to the microsecond for 285 years."""
    if pa.types.is_integer(values.type):
        return floats_of(values) * MICROSECONDS[unit]
    return floats_of(values.cast(pa.timestamp("us", getattr(values.type, "tz", None)), safe=False).cast(pa.int64()))
