"""A table of 10⁸ rows of 16 in float16 with row-wise Adagrad: 3.2 GB of weights and 0.4 GB of state, on one machine."""

from __future__ import annotations

import resource
import time
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
import torch

from tests.benchmarks import harness
from tests.benchmarks.embedding_steps import OurTables, feed, spec_of
from tests.distributed.ranks import run_ranks
from trainer import machine

ROWS, TINY_ROWS = 100_000_000, 10_000
IDS, STEPS = 200_000, 30


def train(rank: int, world_size: int, rows: int) -> dict[str, Any]:
    """Builds, initialises and trains it for some steps on log-uniform ids, which reach all of it."""
    torch.set_num_threads(machine.cores())
    began = time.perf_counter()
    tables = OurTables({"t": replace(spec_of("t", rows, 16, "rowwise_adagrad"), dtype="fp16")})
    ready = time.perf_counter() - began
    rng = np.random.default_rng(1)
    scatter = np.int64(2_654_435_761)
    seconds, unique = [], []
    for _ in range(STEPS):
        drawn = np.exp(rng.random(min(IDS, rows)) * np.log(rows)).astype(np.int64)
        fed = feed(torch.from_numpy(drawn * scatter % rows))
        gradient = torch.randn(len(fed.ids), 16)
        began = time.perf_counter()
        tables.step({"t": fed}, {"t": gradient})
        seconds.append(time.perf_counter() - began)
        unique.append(len(fed.unique))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"ready": ready, "seconds": seconds[2:], "unique": unique, "peak": peak}


def report(tiny: bool) -> dict[str, float]:
    """Prints what it took; peak_over_table: peak resident memory over the bytes of weights and state."""
    rows = TINY_ROWS if tiny else ROWS
    result = run_ranks(train, 1, rows, timeout=1800)[0]
    table_bytes = rows * (16 * 2 + 4)
    steps = [1e3 * seconds for seconds in result["seconds"]]
    harness.table(
        ["10⁸ rows × 16, fp16, row-wise Adagrad" if not tiny else f"{rows} rows", ""],
        [
            ["weights and state", f"{table_bytes / 1e9:.2f} GB"],
            ["built and initialised in", f"{result['ready']:.1f} s"],
            ["ids a step, unique", f"{IDS:,}, {median(result['unique']):,.0f}"],
            ["a step", f"{median(steps):.1f} ms ({min(steps):.1f}–{max(steps):.1f})"],
            ["peak resident memory", f"{result['peak'] / 1e9:.2f} GB"],
        ],
    )  # fmt: skip
    return {"peak_over_table": result["peak"] / table_bytes, "seconds_to_initialise": result["ready"]}
