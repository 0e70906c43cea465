"""A short trial of the tower: seconds for forward and backward of its two kinds of layer at the run's own widths."""

from __future__ import annotations

import statistics
import time
from dataclasses import replace

import torch

from model.attention import make_layouts
from model.block import Block
from model.compute import Compute
from model.config import Model
from model.inputs import InputSpec
from model.rope import rotation
from model.stream import ALWAYS_KNOWN, Stream
from model.timeline import chosen

_PRODUCTS = 6e8  # multiplications of a trial's forward pass: tens of milliseconds of a CPU core
_REPEATS = 3


def probe(spec: InputSpec, config: Model, compute: Compute, device: torch.device) -> float:
    """Median seconds of rows half as long as the longest, one full and one sliding layer where the model has them. The
    generators are left as they were."""
    windows = tuple(dict.fromkeys(config.layer_windows))[:2]
    per_token = len(windows) * config.dim * (5 * config.dim + 3 * config.hidden_dim)
    length = len(spec.static) + 2 + sum(history.max_length for history in spec.histories) // 2
    length = max(8, min(length, 512))
    rows = max(1, min(64, int(_PRODUCTS / per_token) // length))
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.enable_grad():
        blocks = [Block(config).to(device) for _ in windows]
        for block in blocks:
            # What is compiled later is the same arithmetic: compiling only for a trial would take longer than it saves.
            block.compute = replace(compute, compiled=False)
        stream = _causal(rows, length, device)
        stream, taken, _, layouts = make_layouts(stream, windows, backend=config.attention, savings=config.savings)
        turned = rotation(stream.position_N, config.dim // config.num_heads, config.rope_base, torch.float32)
        x_ND = torch.randn(stream.position_N.shape[0], config.dim, device=device)
        seconds = []
        for _ in range(1 + _REPEATS):
            began = _now(device)
            x_AD, turned_A = chosen(x_ND, taken), chosen(turned, taken)
            for block, layout in zip(blocks, layouts, strict=True):
                turned_Q = chosen(turned_A, layout.queries_A)
                x_AD, turned_A = block(x_AD, layout, turned_A, turned_Q), turned_Q
            torch.autograd.backward(x_AD.sum())
            seconds.append(_now(device) - began)
    return statistics.median(seconds[1:])


def _causal(rows: int, length: int, device: torch.device) -> Stream:
    """Rows of one length, of which every place is supervised."""
    place_N = torch.arange(length, device=device).repeat(rows)
    every_N = torch.arange(rows * length, device=device)
    return Stream(
        num_fields=0,
        num_rows=rows,
        source_N=every_N,
        row_N=every_N // length,
        order_N=place_N,
        index_N=place_N,
        last_N=place_N,
        position_N=place_N,
        known_N=torch.full_like(place_N, ALWAYS_KNOWN),
        clock_N=place_N,
        supervised_S=every_N,
    )


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
