"""One window from files to batches: read → decode → clocks, labels, unique ids → shuffle → cut → deal → collate. A pure
function: both executors run it, wherever they like."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from pipelines.batch import Batch, Int64
from pipelines.clocks import hide_unknown_actions, read_clocks, request_ids
from pipelines.collate import WindowArrays, collate, inner_starts, unique_tables
from pipelines.config import Data
from pipelines.decode import complete, concatenate, decode_table
from pipelines.errors import DataError
from pipelines.read import read_window
from pipelines.reading import Reading
from pipelines.retries import counting_retries
from pipelines.schema import Schema
from pipelines.supervision import supervise
from pipelines.windows import Window


def carry_window(window: Window, reading: Reading, world_size: int, ranks: Iterable[int]) -> dict[int, list[Batch]]:
    """{rank: its batch of each of the window's global batches}, for the ranks asked for.

    A rank that is dealt no row gets a filler: the global batch's first row without weight. Raises DataError, naming
    file, row, column and value of what is wrong, all columns at once.
    """
    schema = reading.schema
    with counting_retries() as retried:
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
    if retried.count:  # told once a window, whoever reads it
        told = batches[min(batches)]
        told[0] = replace(told[0], retries=retried.count)
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
    for table, path, file, row in read_window(window, schema, data.read_retries):
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
    supervision = supervise(rows, schema, data, request, window.evaluation)
    unique, codes = unique_tables(rows, schema)
    starts = {name: inner_starts(rows.columns[name]) for name in codes if rows.columns[name].lengths is not None}
    user = rows.columns[schema.user].values
    return WindowArrays(schema, rows, clocks, unique, codes, starts, supervision, user, request)
