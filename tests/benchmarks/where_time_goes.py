"""Where the time of our step goes: the training pipeline's own named spans, and the exchanges inside them."""

from __future__ import annotations

import time
from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile

# TorchRec's names of a step's spans, and gloo's of its exchanges.
SPANS = {
    "## forward": "forward",
    "## backward": "backward",
    "## optimizer": "optimizer, with waiting for the dense exchange",
    "## copy_batch_to_gpu": "next batch: reading, id mapping, wrapping",
    "## start_sparse_data_dist": "next batch: exchange of ids, start",
    "## wait_sparse_data_dist": "next batch: exchange of ids, end",
    "## zero_grad": "zeroing gradients",
    "gloo:": "beside these, gloo exchanges with their waiting",
}


def split(step: Callable[[], object], steps: int) -> list[list[str]]:
    """Rows of a table: span, milliseconds a step, share. Profiling slows a step down; shares are what to read."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        began = time.perf_counter()
        for _ in range(steps):
            step()
        total = time.perf_counter() - began
    spans = dict.fromkeys(SPANS.values(), 0.0)
    for event in profiler.events() or []:
        for name, label in SPANS.items():
            if event.name.startswith(name):
                spans[label] += event.cpu_time_total / 1e6
    rows = [[label, f"{1000 * seconds / steps:.1f}", f"{seconds / total:.0%}"] for label, seconds in spans.items()]
    return [*rows, ["whole step, profiled", f"{1000 * total / steps:.1f}", ""]]
