"""Saving and loading hold a few blocks of a table at a time, never a copy of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from embeddings.held import Held, LocalChunk
from embeddings.touched import RowMap, ShardRows, TouchedRows
from tests.benchmarks.checkpoint import SCHEMA, Peak
from tests.distributed.ranks import run_ranks
from trainer.checkpoint.checkpointer import Checkpointer
from trainer.checkpoint.state import CheckpointState
from trainer.config_sections import Checkpoint
from trainer.run_dir import RunDir

WIDTH = 16
SOME_BLOCKS = 200e6  # bytes, whatever the table's size


def _peaks(rank: int, world_size: int, folder: str, rows: int) -> dict[str, int]:
    """Bytes above what was resident before, of a save beside training, of a difference, and of a load of both."""
    weight, state = torch.ones(rows, WIDTH), torch.ones(rows, 1)
    generation = torch.zeros(rows, dtype=torch.uint8)
    row_map = RowMap(generation, torch.zeros(1, dtype=torch.int64), (ShardRows("t", 0, generation, 0),))
    touched = TouchedRows([row_map])
    tensors = {
        "tables/t/weight": Held((rows, WIDTH), torch.float32, (LocalChunk((0, 0), weight),)),
        "tables/t/momentum1": Held((rows, 1), torch.float32, (LocalChunk((0, 0), state),)),
    }
    config = Checkpoint(full_every=3)
    checkpointer = Checkpointer(RunDir(folder), config, touched=touched)
    found = {"table": weight.nbytes + state.nbytes}
    for step, kind in ((1, "full"), (2, "delta")):
        touched.changing("t", torch.arange(0, rows, 2))
        weight[::2] += 1
        with Peak() as peak:
            path = checkpointer.save(CheckpointState(step=step, data_schema=SCHEMA), lambda: tensors).path
        found[kind] = peak.bytes
    weight.zero_()
    with Peak() as peak:
        Checkpointer(RunDir(folder), config, touched=touched).load(path, tensors)
    found["load"] = peak.bytes
    assert weight[0, 0] == 3
    assert weight[1, 0] == 1
    return found


@pytest.mark.timeout(900)
@pytest.mark.parametrize("rows", [6_000_000, pytest.param(45_000_000, marks=pytest.mark.slow)])
def test_a_table_of_some_gigabytes_is_streamed(tmp_path: Path, rows: int) -> None:
    found = run_ranks(_peaks, 1, str(tmp_path), rows, timeout=800)[0]
    assert found["table"] > 2 * SOME_BLOCKS
    assert found["full"] < SOME_BLOCKS, found
    assert found["delta"] < SOME_BLOCKS + rows * 12, found  # which rows: 8 bytes each, and what finds them
    assert found["load"] < SOME_BLOCKS, found
