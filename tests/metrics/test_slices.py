"""Metrics per slice are those of the slice's examples alone, to the bit whatever the ranks and interruptions."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.telemetry.test_telemetry import TRAIN, _scrape
from trainer.config_sections import Telemetry
from trainer.metrics.slices import GlobalSlices, SliceMetrics
from trainer.metrics.streaming import TaskMetrics, addends
from trainer.metrics.values import TaskValues
from trainer.telemetry.jsonl import train_line
from trainer.telemetry.prometheus import Prometheus

TASKS, SLICES = ("click", "order"), ("a", "b", "none")


def _examples(count: int) -> tuple[torch.Tensor, ...]:
    """slice [S], probabilities, labels, weights [S, 2]: nulls and a prediction that is not finite among them."""
    chance = np.random.default_rng(3)
    slice_S = chance.integers(0, 2, count)
    p_SK = chance.uniform(0.001, 0.999, (count, 2)).astype(np.float32)
    p_SK[5, 0] = np.nan
    labels_SK = (chance.uniform(size=(count, 2)) < p_SK).astype(np.float32)
    weights_SK = chance.choice([0.0, 0.3, 1.0, 2.5], (count, 2)).astype(np.float32)
    return tuple(torch.from_numpy(array) for array in (slice_S, p_SK, labels_SK, weights_SK))


def _by_hand(examples: tuple[torch.Tensor, ...], index: int) -> dict[str, TaskValues]:
    """The slice's examples through the metrics without slices."""
    slice_S, *of_examples = examples
    metrics = TaskMetrics(TASKS)
    metrics.update(*(of[slice_S == index] for of in of_examples))
    return metrics.reduced().values("window")


def test_a_slice_s_figures_are_those_of_its_examples_alone() -> None:
    examples = _examples(4000)
    metrics = SliceMetrics(TASKS, SLICES)
    metrics.update(examples[0], addends(*examples[1:]))
    found = metrics.reduced().values("window")
    assert list(found) == list(SLICES)
    for index, name in enumerate(("a", "b")):
        for task, expected in _by_hand(examples, index).items():
            of_task = found[name][task]
            assert (of_task.examples, of_task.weight, of_task.loss) == (
                expected.examples,
                expected.weight,
                expected.loss,
            )
            assert (of_task.ne, of_task.calibration) == (expected.ne, expected.calibration)
            assert of_task.nonfinite == expected.nonfinite
            assert of_task.auc == pytest.approx(expected.auc, abs=of_task.auc_error + expected.auc_error)
            assert of_task.auc_error < 0.01
    assert found["none"]["click"].examples == 0
    assert found["none"]["click"].ne is None


def test_ranks_and_interruptions_change_no_bit() -> None:
    """Dealt to two ranks in another order, saved in between and gone on with: the same integers."""
    examples = _examples(1000)
    whole = SliceMetrics(TASKS, SLICES)
    whole.update(examples[0], addends(*examples[1:]))
    ranks = [SliceMetrics(TASKS, SLICES) for _ in range(2)]
    for rank, metrics in enumerate(ranks):
        for part in (slice(600 + rank, None, 2), slice(rank, 600, 2)):
            slice_S, *of_part = (of[part] for of in examples)
            metrics.update(slice_S, addends(*of_part))
            saved = json.loads(json.dumps(metrics.reduced().state()))
            metrics.load(saved, rank=0)
    total = sum(metrics.reduced()._integers for metrics in ranks)
    assert GlobalSlices(TASKS, SLICES, total).values("window") == whole.reduced().values("window")  # type: ignore[arg-type]


def test_scopes_begin_anew_on_their_own_and_other_slices_are_not_mixed_in() -> None:
    examples = _examples(50)
    metrics = SliceMetrics(TASKS, SLICES)
    metrics.update(examples[0], addends(*examples[1:]))
    metrics.reset("window")
    assert metrics.reduced().values("window")["a"]["click"].examples == 0
    assert metrics.reduced().values("segment")["a"]["click"].examples > 0
    other = SliceMetrics(TASKS, ("c", "d", "none"))
    other.load(metrics.reduced().state(), rank=0)
    assert not other._sums.any()


def test_slices_are_told_on_the_endpoint_and_in_metrics_jsonl() -> None:
    """One without examples since the last log has a series without a value, and no place in the file."""
    examples = _examples(200)
    metrics = SliceMetrics(TASKS, SLICES)
    metrics.update(examples[0], addends(*examples[1:]))
    values = metrics.reduced().values("window")
    record = replace(TRAIN, slice_by="country", slices=values)
    endpoint = Prometheus(Telemetry(), 0, TASKS)
    try:
        endpoint.train(record)
        seen = _scrape(endpoint.url)
    finally:
        endpoint.close()
    for figure in ("ne", "auc", "calibration", "loss"):
        of_b = seen[f"tokenformer_train_slice_{figure}", (("slice", "b"), ("task", "click"))]
        assert of_b == pytest.approx(getattr(values["b"]["click"], figure))
    assert np.isnan(seen["tokenformer_train_slice_ne", (("slice", "none"), ("task", "click"))])
    told = train_line(record)["slices"]
    assert (told["by"], list(told["values"])) == ("country", ["a", "b"])
    assert told["values"]["a"]["order"]["examples"] == values["a"]["order"].examples
