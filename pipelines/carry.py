"""One window from files to batches: read → decode → clocks, labels, unique ids → shuffle → cut → deal → collate. A pure
function: both executors run it, wherever they like."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from pipelines.batch import Batch, Float64, Int64
from pipelines.clocks import hide_unknown_actions, read_clocks, request_ids
from pipelines.collate import Pick, WindowArrays, collate, window_arrays
from pipelines.kernels import deal_by_cost
from pipelines.load import load_rows
from pipelines.reading import Reading, RowCost
from pipelines.retries import counting_retries
from pipelines.supervision import supervise
from pipelines.windows import Window


def carry_window(window: Window, reading: Reading, world_size: int, ranks: Iterable[int]) -> dict[int, list[Batch]]:
    """{rank: its batch of each of the window's global batches}, for the ranks asked for.

    A rank that is dealt no row gets a filler: the global batch's first row without weight. Raises DataError, naming
    file, row, column and value of what is wrong, all columns at once; see `load_rows` for bad rows in quarantine.
    """
    with counting_retries() as retried:
        arrays = load_window(window, reading)
    order = window.order()
    cost_R = row_costs(arrays, reading.cost)
    wanted, picks = list(ranks), []
    for index in range(window.batches):
        rows = order[index * window.global_batch : (index + 1) * window.global_batch]
        dealt = deal(cost_R[rows], world_size)
        position = window.position(index)
        for rank in wanted:
            mine = rows[dealt == rank]
            picks.append(Pick(mine, position) if len(mine) else Pick(rows[:1], position, filler=True))
    made = collate(arrays, picks)
    batches = {rank: made[place :: len(wanted)] for place, rank in enumerate(wanted)}
    if retried.count:  # told once a window, whoever reads it
        told = batches[min(batches)]
        told[0] = replace(told[0], retries=retried.count)
    return batches


def deal(cost_R: Float64, world_size: int) -> Int64:
    """The rank of each row: the dearest first, each to the rank that has least so far. [R]

    Numbers of rows differ, but no rank is without while there are rows enough. With eight rows a rank and more, the
    dearest rank is within a few percent of the mean; where one row alone costs more than the mean, no dealing is even,
    and its rank has that row alone.
    """
    return deal_by_cost(cost_R, world_size)


def row_costs(arrays: WindowArrays, cost: RowCost) -> Float64:
    """What each row of the window costs the tower, by the lists' kept positions. [R]"""
    kept = arrays.clocks.kept
    counted = [g for g in kept if g != "candidates" or arrays.schema.supervision == "candidates"]
    length_R = np.zeros(arrays.rows.count)
    for group in counted:
        length_R += kept[group].lengths
    costs_R: Float64 = cost.fixed + cost.linear * length_R + cost.quadratic * length_R**2
    return costs_R


def load_window(window: Window, reading: Reading) -> WindowArrays:
    """The window's rows in reading order, with all that batches are gathered from. Raises DataError."""
    schema = reading.schema
    rows = load_rows(window, reading)
    clocks = read_clocks(rows, schema)
    if schema.supervision == "candidates":
        hide_unknown_actions(rows, schema, clocks)
    request = request_ids(rows, schema, clocks.request_time)
    supervision = supervise(rows, schema, reading.data, request, window.evaluation)
    user = rows.columns[schema.user].values
    return window_arrays(schema, rows, clocks, supervision, user, request)
