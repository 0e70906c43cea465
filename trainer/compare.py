"""Two folders of predictions of the same rows, matched position by position, and how they differ.

In one process, whole columns in memory: some 100 bytes a position and task while they are compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.arrow_arrays import one_array
from trainer.errors import ConfigError, RunDataError
from trainer.metrics.bootstrap import Difference, Pair, compare, log_odds
from trainer.prediction_files import FILE, POSITION, ROW, Manifest, read_manifest, read_predictions, task_columns
from trainer.slices import Slicer, as_words

Int64 = npt.NDArray[np.int64]
WEIGHTS_DIFFER = 1e-6  # relative
MOST_KEYS = 2**62


@dataclass(frozen=True)
class Apart:
    """How far two models' predictions are from each other, all positions alike. mean: |p_B − p_A|; relative: to the
    mean of p_A; largest. correlation: of the log-odds, None where one of them is constant."""

    mean: float
    relative: float | None
    largest: float
    correlation: float | None


@dataclass(frozen=True)
class OfTask:
    """examples, users: that both models were scored on. unshared: examples that one of them has no label for."""

    examples: int
    users: int
    differences: Mapping[str, Difference]
    apart: Apart | None
    unshared: int = 0


@dataclass(frozen=True)
class Comparison:
    """positions: matched; only_a, only_b: that the other has not predicted. tasks: of both. slices: {value: tasks},
    others: values in the last one where there are more than fit."""

    a: Manifest
    b: Manifest
    positions: int
    only_a: int
    only_b: int
    resamples: int
    seed: int
    tasks: Mapping[str, OfTask]
    by: str = ""
    slices: Mapping[str, Mapping[str, OfTask]] | None = None
    others: int = 0


def compare_predictions(folder_a: str, folder_b: str, by: str, resamples: int, seed: int) -> Comparison:
    """Raises CheckpointError: no complete predictions; ConfigError: they have nothing to compare; RunDataError: what
    should be one label or weight is not."""
    a, b = read_manifest(folder_a), read_manifest(folder_b)
    tasks = _common_tasks(a, b)
    table_a, table_b = _read(folder_a, a, tasks, by), _read(folder_b, b, tasks, "")
    at_a, at_b = _match(table_a, table_b, folder_a, folder_b)
    users_N = _codes(one_array(table_a[a.user]).take(pa.array(at_a)))
    pairs = {task: _pair(task, table_a, table_b, at_a, at_b, users_N) for task in tasks}
    found = {task: _of_task(*of, resamples, seed) for task, of in pairs.items()}
    slices, others = None, 0
    if by:
        values = as_words(one_array(table_a[by]).take(pa.array(at_a)), a.boundaries if by == a.by else ())
        slices, others = _slices(values, pairs, resamples, seed)
    only = len(table_a) - len(at_a), len(table_b) - len(at_b)
    return Comparison(a, b, len(at_a), *only, resamples, seed, found, by, slices, others)


def _common_tasks(a: Manifest, b: Manifest) -> list[str]:
    if a.group != b.group:
        raise ConfigError(
            f"A predicts positions of {a.group}, B of {b.group} → positions are matched one by one → compare models "
            "that are supervised at the same ones, or join their predictions by your own ids (docs/compare.md)"
        )
    tasks = [task for task in a.tasks if task in b.tasks]
    if not tasks:
        raise ConfigError(
            f"A predicts {', '.join(a.tasks)}, B {', '.join(b.tasks)} → tasks are matched by name → name the same "
            "label's task alike in both schemas"
        )
    if not a.user:
        raise ConfigError("predictions of A have no user → resamples are of users → predict with a schema that has one")
    return tasks


def _read(folder: str, manifest: Manifest, tasks: list[str], by: str) -> pa.Table:
    known = [manifest.user, manifest.time, manifest.by, *manifest.request, *manifest.candidate]
    if by and by not in known:
        raise ConfigError(
            f"--by {by} → predictions hold {', '.join(filter(None, dict.fromkeys(known)))} → predict A with --by {by}"
        )
    columns = [FILE, ROW, POSITION, *([manifest.user] if manifest.user else []), *([by] if by else [])]
    columns += [column for task in tasks for column in task_columns(task)]
    return read_predictions(folder, manifest, list(dict.fromkeys(columns)))


def _match(a: pa.Table, b: pa.Table, folder_a: str, folder_b: str) -> tuple[Int64, Int64]:
    """Places of the common positions in both tables, in A's order. Raises ConfigError where there are none."""
    files_a, files_b = (one_array(table[FILE]) for table in (a, b))
    names = {name: code for code, name in enumerate(files_a.dictionary.to_pylist())}
    names_b = files_b.dictionary.to_pylist()
    for name in names_b:
        names.setdefault(name, len(names))
    code_b = np.array([names[name] for name in names_b], np.int64)
    file_a = files_a.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    file_b = code_b[files_b.indices.to_numpy(zero_copy_only=False)] if len(names_b) else np.zeros(0, np.int64)
    parts_a, parts_b = ([table[name].to_numpy().astype(np.int64) for name in (ROW, POSITION)] for table in (a, b))
    rows, places = (
        max(int(x.max(initial=0)), int(y.max(initial=0))) + 1 for x, y in zip(parts_a, parts_b, strict=True)
    )
    assert len(names) * rows * places < MOST_KEYS, "more positions than any log has"
    key_a, key_b = ((f * rows + r) * places + p for f, (r, p) in ((file_a, parts_a), (file_b, parts_b)))
    if np.array_equal(key_a, key_b):  # as one process writes them
        at = np.arange(len(key_a))
        at_a, at_b = at, at
    else:
        _, at_a, at_b = np.intersect1d(key_a, key_b, assume_unique=True, return_indices=True)
    if not len(at_a):
        some = [next(iter(f.dictionary.to_pylist()), "nothing") for f in (files_a, files_b)]
        raise ConfigError(
            f"no position of '{folder_a}' ({some[0]} …) is in '{folder_b}' ({some[1]} …) → positions are matched by "
            "file, row and place in the row's list → predict both on the same rows, by the same path"
        )
    order = np.argsort(at_a)
    return at_a[order], at_b[order]


def _pair(
    task: str, a: pa.Table, b: pa.Table, at_a: Int64, at_b: Int64, users_N: npt.NDArray[np.int32]
) -> tuple[Pair, npt.NDArray[np.bool_], int]:
    """(what both have an example of, where that is among the matched positions, how many examples one of them lacks).
    Raises RunDataError."""
    probability, label, weight = task_columns(task)
    seen = [
        pc.is_valid(one_array(t[label]).take(pa.array(at))).to_numpy(zero_copy_only=False)
        for t, at in _both(a, b, at_a, at_b)
    ]
    shared = seen[0] & seen[1]
    at_a, at_b = at_a[shared], at_b[shared]
    labels_a, labels_b = (_numbers(t, label, at) > 0 for t, at in _both(a, b, at_a, at_b))
    weights_a, weights_b = (_numbers(t, weight, at).astype(np.float64) for t, at in _both(a, b, at_a, at_b))
    unlike = np.flatnonzero(labels_a != labels_b)
    heavier = np.flatnonzero(~np.isclose(weights_a, weights_b, rtol=WEIGHTS_DIFFER, atol=0.0))
    for which, what, values in ((unlike, "label", (labels_a, labels_b)), (heavier, "weight", (weights_a, weights_b))):
        if len(which):
            row = a.slice(int(at_a[which[0]]), 1).to_pylist()[0]
            one, other = (f"{float(v[which[0]]):g}" for v in values)
            raise RunDataError(
                f"task '{task}' has another {what} in B at {len(which):,} of {len(at_a):,} positions, first "
                f"'{row[FILE]}' row {row[ROW]}, position {row[POSITION]}: {one} in A, {other} in B → both models are "
                f"held against one {what} → give the task the same {what} column in both schemas"
            )
    scores_a, scores_b = (_numbers(t, probability, at) for t, at in _both(a, b, at_a, at_b))
    finite = np.isfinite(scores_a) & np.isfinite(scores_b)
    users = np.unique(users_N[shared][finite], return_inverse=True)[1].astype(np.int32)
    shared[np.flatnonzero(shared)[~finite]] = False
    pair = Pair(scores_a[finite], scores_b[finite], labels_a[finite], weights_a[finite], users)
    return pair, shared, int(np.count_nonzero(seen[0] | seen[1]) - len(users))


def _both(a: pa.Table, b: pa.Table, at_a: Int64, at_b: Int64) -> tuple[tuple[pa.Table, Int64], tuple[pa.Table, Int64]]:
    return (a, at_a), (b, at_b)


def _numbers(table: pa.Table, name: str, at: Int64) -> npt.NDArray[Any]:
    """Values at places where none is null."""
    column = one_array(table[name])
    values: npt.NDArray[Any] = pc.fill_null(column, 0).to_numpy(zero_copy_only=False)[at]
    return values


def _codes(values: pa.Array) -> npt.NDArray[np.int32]:
    """The same number for the same value."""
    encoded = values if pa.types.is_dictionary(values.type) else pc.dictionary_encode(values, null_encoding="encode")
    codes: npt.NDArray[np.int32] = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int32)
    return codes


def _of_task(pair: Pair, shared: npt.NDArray[np.bool_], unshared: int, resamples: int, seed: int) -> OfTask:
    return OfTask(len(pair.a_N), pair.users, compare(pair, resamples, seed), apart(pair), unshared)


def apart(pair: Pair) -> Apart | None:
    """None where there are no positions."""
    if not len(pair.a_N):
        return None
    a_N, b_N = pair.a_N.astype(np.float64), pair.b_N.astype(np.float64)
    off_N = np.abs(b_N - a_N)
    odds = log_odds(pair.a_N), log_odds(pair.b_N)
    constant = any(np.ptp(of) == 0 for of in odds)
    return Apart(
        mean=float(off_N.mean()),
        relative=float(off_N.mean() / a_N.mean()) if a_N.any() else None,
        largest=float(off_N.max()),
        correlation=None if constant else float(np.corrcoef(*odds)[0, 1]),
    )


def _slices(
    values: pa.Array, pairs: Mapping[str, tuple[Pair, npt.NDArray[np.bool_], int]], resamples: int, seed: int
) -> tuple[dict[str, dict[str, OfTask]], int]:
    slicer = Slicer()
    counted = np.any([shared for _, shared, _ in pairs.values()], axis=0)
    codes = slicer.codes(values, counted)
    chosen = slicer.choose(None)
    slice_N = chosen.codes[codes]
    found: dict[str, dict[str, OfTask]] = {}
    for place, value in enumerate(chosen.values):
        found[value] = {
            task: _of_task(pair.where(slice_N[shared] == place), shared, 0, resamples, seed)
            for task, (pair, shared, _) in pairs.items()
        }
    return found, chosen.others
