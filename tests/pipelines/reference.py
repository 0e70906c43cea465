"""A slow reference of collate, straight from the docstrings: one row at a time, Python values in, Python values out."""

from __future__ import annotations

import bisect
import math
from collections import Counter
from typing import Any

import numpy as np

from pipelines.batch import Batch
from pipelines.schema import INPUT_ROLES, MISSING_ID, Column, Schema
from tests.pipelines.rows import SECOND


def fnv1a(text: str) -> int:
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return value - 2**64 if value >= 2**63 else value


def id_of(value: Any) -> int:
    if value is None:
        return MISSING_ID
    return fnv1a(value) if isinstance(value, str) else int(value)


def one(spec: Column, value: Any) -> Any:
    """A single position's value of a column."""
    nothing = value is None or (isinstance(value, float) and math.isnan(value))
    if spec.kind == "id":
        return id_of(value)
    if spec.kind == "ids":
        return [id_of(element) for element in value or []]
    if spec.kind == "bucket":
        return MISSING_ID if nothing else bisect.bisect_right(spec.boundaries, value)
    if spec.kind == "vector":
        return [0.0] * spec.size if value is None else [float(v) for v in value]
    return 0.0 if nothing else float(value)


def last_unknown(schema: Schema, row: dict[str, Any], name: str) -> list[int]:
    """Action clocks of a row's history."""
    history = schema.histories[name]
    times, known = row[history.time], row[history.action_time or history.time]
    if schema.ties == "exclude":
        return [k * SECOND for k in known]
    clocks = []
    for index, at in enumerate(known):
        later = [j for j, time in enumerate(times) if j > index and time >= at]
        first_known = later[0] if later else len(times)
        if history.action_time and at > request_time(schema, row):
            first_known = len(times) + 1
        clocks.append(first_known - 1)
    return clocks


def request_time(schema: Schema, row: dict[str, Any]) -> int:
    column = schema.column_with_role("time")
    if column is not None:
        return int(row[column])
    times = row[schema.histories[schema.supervised_history].time]
    return times[-1] if times else 0


def expected_row(schema: Schema, row: dict[str, Any]) -> dict[str, list[Any]]:
    """{column or "clock.NAME", …: values, position after position} of one row; nested lists for `ids` and `vector`."""
    result: dict[str, list[Any]] = {}
    drop = {"": 0, "candidates": 0}
    hidden: dict[str, list[bool]] = {}
    now = request_time(schema, row) * SECOND
    for name, history in schema.histories.items():
        length = len(row[history.time])
        first = drop[f"history.{name}"] = max(0, length - history.max_length)
        ordered = schema.ties == "order"
        action = last_unknown(schema, row, name)
        clock = list(range(length)) if ordered else [t * SECOND for t in row[history.time]]
        result[f"request_clock.{name}"] = [length - first if ordered else now]
        hidden[f"history.{name}"] = [a >= (length if ordered else now) for a in action]
        result[f"time.{name}"] = [t * SECOND for t in row[history.time]][first:]
        result[f"clock.{name}"] = [c - first if ordered else c for c in clock][first:]
        result[f"action_clock.{name}"] = [a - first if ordered else a for a in action][first:]
    for name, spec in schema.columns.items():
        if spec.role not in INPUT_ROLES:
            continue
        values = row.get(name, spec.default) if name in row else spec.default
        positions = [values] if not spec.group else list(values or [])
        converted = [one(spec, value) for value in positions]
        if spec.role == "action" and schema.supervision == "candidates":
            nothing = one(spec, None)
            converted = [nothing if hide else v for v, hide in zip(converted, hidden[spec.group], strict=True)]
        result[name] = converted[drop[spec.group] :]
    for name, task in schema.tasks.items():
        first = drop.get(f"history.{schema.supervised_history}", 0)
        labels = row[task.label]
        weights = row[task.weight] if task.weight else [1.0] * len(labels)
        space = row[task.space] if task.space else [1] * len(labels)
        counts = [0.0 if y is None or s != 1 else (w or 0.0) for y, w, s in zip(labels, weights, space, strict=True)]
        result[f"weight.{name}"] = counts[first:]
        result[f"label.{name}"] = [float(y) if w else 0.0 for y, w in zip(labels, counts, strict=True)][first:]
    return result


def assert_batch_equals(batch: Batch, schema: Schema, rows: list[dict[str, Any]]) -> None:
    """The batch of these rows, in this order."""
    expected = [expected_row(schema, row) for row in rows]

    def flat(key: str) -> list[Any]:
        return [value for row in expected for value in row[key]]

    counts: dict[str, Counter[int]] = {table: Counter() for table in batch.tables}
    for name, spec in schema.columns.items():
        if name in batch.fields:
            field = batch.fields[name]
            ids = batch.tables[field.table].ids[field.inverse].tolist()
            wanted = flat(name)
            if spec.kind == "ids":
                assert field.lengths is not None
                assert field.lengths.tolist() == [len(v) for v in wanted], name
                wanted = [i for v in wanted for i in v]
            assert ids == wanted, name
            counts[field.table].update(wanted)
        elif name in batch.dense:
            shape = (-1, spec.size) if spec.kind == "vector" else (-1,)
            np.testing.assert_array_equal(batch.dense[name], np.array(flat(name), np.float32).reshape(shape), name)
    for table, ids_ in batch.tables.items():
        assert dict(zip(ids_.ids.tolist(), ids_.counts.tolist(), strict=True)) == dict(counts[table])
        assert (ids_.ids[1:] > ids_.ids[:-1]).all()
    for name in schema.histories:
        assert batch.times[name].tolist() == flat(f"time.{name}")
        assert batch.clocks[name].tolist() == flat(f"clock.{name}")
        assert batch.action_clocks[name].tolist() == flat(f"action_clock.{name}")
        assert batch.request_clock.tolist() == flat(f"request_clock.{name}")
        assert batch.history_lengths[name].tolist() == [len(row[f"time.{name}"]) for row in expected]
    assert batch.request_time.tolist() == [request_time(schema, row) * SECOND for row in rows]
    assert batch.user.tolist() == [id_of(row[schema.user]) for row in rows]
    for name in schema.tasks:
        np.testing.assert_allclose(batch.labels[name], flat(f"label.{name}"))
        np.testing.assert_allclose(batch.weights[name], flat(f"weight.{name}"), rtol=1e-6)
