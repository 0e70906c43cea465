"""A run's MFU: operations of all ranks over the peak of all workers, which a run settles once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.batch import Batch
from tests.benchmarks.field_batches import Shape, field_batches
from tests.benchmarks.train_rows import Shape as RowsShape
from tests.benchmarks.train_rows import run_config
from tests.model.builders import make_config, make_spec
from trainer.config import dump_config
from trainer.flops import FORWARD_AND_BACKWARD, Rows, num_fields, ranker_work
from trainer.peak import measured_flops, with_peak
from trainer.run_dir import RunDir
from trainer.runtime import start
from trainer.step_work import StepWork


def _batch(lengths: list[int], candidates: list[int]) -> Batch:
    (batch,) = field_batches(Shape(batch_rows=len(lengths), ids_per_row=4, table_rows=40, fields_most=2), 2, 1)
    batch.history_lengths["seen"] = np.array(lengths, np.int32)
    batch.candidate_lengths[:] = candidates
    return batch


def test_the_work_of_steps_adds_up() -> None:
    spec, config = make_spec(), make_config()
    work = StepWork(spec, config)
    work.add(_batch([0, 3], [1, 2]))
    work.add(_batch([8, 5], [0, 1]))
    rows = Rows({"seen": np.array([0.0, 3, 8, 5])}, np.array([1.0, 2, 0, 1]))
    assert work.take() == pytest.approx(FORWARD_AND_BACKWARD * ranker_work(spec, config, rows).flops)
    assert work.tokens == 4 * num_fields(spec, config) + 16 + 4
    assert work.take() == 0
    assert work.tokens == 0


def test_the_peak_is_measured_once_a_run(tmp_path: Path) -> None:
    config, run_dir = run_config(RowsShape(rows=1), tmp_path), RunDir(tmp_path)
    assert measured_flops(torch.device("cpu"), torch.float32) > 1e8
    with start(60, 1) as runtime:
        first = with_peak(config, run_dir, runtime)
        assert first.train.peak_flops > 1e8
        run_dir.write_text(run_dir.config, dump_config(first))
        assert with_peak(config, run_dir, runtime) == first, "a run that goes on refers to the same peak"
        given = replace(config, train=config.train.model_copy(update={"peak_flops": 5e12}))
        assert with_peak(given, run_dir, runtime).train.peak_flops == 5e12, "what is given stands"
