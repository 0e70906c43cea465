"""One window from files to batches: read → decode → clocks, labels, unique ids → shuffle → cut → deal → collate. A pure
function: both executors run it, wherever they like."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from pipelines.batch import SAMPLED_OUT, TRAINED, Batch, Float32, Int64
from pipelines.clocks import hide_unknown_actions, read_clocks, request_ids
from pipelines.collate import WindowArrays, collate, inner_starts, supervised_group, unique_tables
from pipelines.config import Data
from pipelines.decode import Bool, Rows, complete, concatenate, decode_table
from pipelines.errors import DataError
from pipelines.hashing import mix
from pipelines.read import read_window
from pipelines.reading import Reading
from pipelines.schema import Schema
from pipelines.windows import Window

SAMPLE_SEED = 0x5A3B


def carry_window(window: Window, reading: Reading, world_size: int, ranks: Iterable[int]) -> dict[int, list[Batch]]:
    """{rank: its batch of each of the window's global batches}, for the ranks asked for.

    A rank that is dealt no row gets a filler: the global batch's first row without weight. Raises DataError, naming
    file, row, column and value of what is wrong, all columns at once.
    """
    schema = reading.schema
    arrays = load_window(window, schema, reading.data)
    order = window.order()
    kept = arrays.clocks.kept
    counted = [g for g in kept if g != "candidates" or schema.supervision == "candidates"]
    length_R = np.sum([kept[group].lengths for group in counted], axis=0) if counted else np.ones(len(order), np.int64)
    batches: dict[int, list[Batch]] = {rank: [] for rank in ranks}
    for index in range(window.batches):
        rows = order[index * window.global_batch : (index + 1) * window.global_batch]
        dealt = deal(length_R[rows], world_size)
        position = window.position(index)
        for rank, taken in batches.items():
            mine = rows[dealt == rank]
            taken.append(collate(arrays, mine, position) if len(mine) else collate(arrays, rows[:1], position, True))
    return batches


def deal(length_R: Int64, world_size: int) -> Int64:
    """The rank of each row: by falling length, forth and back over the ranks, so that all carry alike. [R]"""
    order = np.argsort(-length_R, kind="stable")
    turn = np.arange(len(order)) % (2 * world_size)
    rank_R = np.empty(len(order), np.int64)
    rank_R[order] = np.where(turn < world_size, turn, 2 * world_size - 1 - turn)
    return rank_R


def load_window(window: Window, schema: Schema, data: Data) -> WindowArrays:
    """The window's rows in reading order, with all that batches are gathered from. Raises DataError."""
    parts, problems = [], []
    for table, path, file, row in read_window(window, schema):
        part, found = decode_table(table, schema, path, file, row)
        parts.append(part)
        problems += found
    if problems:
        raise DataError(problems)
    for part in parts:
        complete(part, schema, window.evaluation)
    rows = concatenate(parts)
    clocks, problems = read_clocks(rows, schema)
    if problems:
        raise DataError(problems)
    if schema.supervision == "candidates":
        hide_unknown_actions(rows, schema, clocks)
    request = request_ids(rows, schema, clocks.request_time)
    sampled = _sampled(request, data.sample)
    status = np.where(sampled, TRAINED, SAMPLED_OUT).astype(np.int8)
    labels, weights = _supervision(rows, schema, sampled)
    unique, codes = unique_tables(rows, schema)
    starts = {name: inner_starts(rows.columns[name]) for name in codes if rows.columns[name].lengths is not None}
    user = rows.columns[schema.user].values
    return WindowArrays(schema, rows, clocks, unique, codes, starts, labels, weights, status, user, request)


def _sampled(request_R: Int64, share: float) -> Bool:
    if share >= 1.0:
        return np.ones(len(request_R), bool)
    kept: Bool = mix(request_R, SAMPLE_SEED) < np.uint64(share * 2.0**64)
    return kept


def _supervision(rows: Rows, schema: Schema, sampled_R: Bool) -> tuple[dict[str, Float32], dict[str, Float32]]:
    """Labels and weights of each task, at every position of the supervised group."""
    offsets = rows.offsets.get(supervised_group(schema), np.zeros(rows.count + 1, np.int64))
    sampled = np.repeat(sampled_R, np.diff(offsets))
    labels, weights = {}, {}
    for name, task in schema.tasks.items():
        if not task.label:
            labels[name] = weights[name] = np.zeros(len(sampled), np.float32)
            continue
        label = rows.columns[task.label]
        counts = sampled & ~label.null
        if task.space:
            counts &= rows.columns[task.space].values == 1
        weight = rows.columns[task.weight].values if task.weight else np.float32(1)
        weights[name] = np.where(counts, weight, np.float32(0))
        labels[name] = np.where(weights[name] > 0, label.values, np.float32(0))
    return labels, weights
