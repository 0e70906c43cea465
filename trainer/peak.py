"""The peak that MFU refers to: what matrix products alone come to on one worker, measured once a run or given."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from statistics import median

import torch
import torch.distributed as dist

from trainer.config import Config
from trainer.run_dir import RunDir
from trainer.runtime import Runtime

log = logging.getLogger(__name__)

_PRODUCTS = 9
_SIZES = {"cpu": 512, "cuda": 8192}


def with_peak(config: Config, run_dir: RunDir, runtime: Runtime) -> Config:
    """`config` with `[train] peak_flops` settled: as given, or as an earlier start of this run wrote it down, or
    measured now, on all ranks at once, so that it is what they can have together, in the dtype of the run's products,
    which is settled already. Announced. Collective."""
    dtype = getattr(torch, config.train.dtype)
    peak, reason = config.train.peak_flops, "train.peak_flops"
    if not peak:
        recorded = run_dir.recorded_train().get("peak_flops") if runtime.is_first else None
        said = [float(recorded) if isinstance(recorded, int | float) else 0.0]
        dist.broadcast_object_list(said, src=0, group=runtime.control)
        peak, reason = said[0], "as this run's first start measured it"
    if not peak:
        dist.barrier(runtime.control)
        measured = torch.tensor([measured_flops(runtime.device, dtype)], dtype=torch.float64)
        dist.all_reduce(measured, group=runtime.control)
        peak = float(measured) / runtime.world_size
        reason = f"measured with {config.train.dtype} matrix products on all workers"
    if runtime.is_first:
        log.info("MFU is of a peak of %.4g GFLOP/s a worker: %s", peak / 1e9, reason)
    return replace(config, train=config.train.model_copy(update={"peak_flops": peak}))


def measured_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of square products with this process's threads: median of a few. No random numbers are drawn."""
    size = _SIZES[device.type]
    x, y = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
    out = torch.mm(x, y)
    taken = []
    for _ in range(_PRODUCTS):
        _wait(device)
        began = time.perf_counter()
        torch.mm(x, y, out=out)
        _wait(device)
        taken.append(time.perf_counter() - began)
    return 2.0 * size**3 / median(taken)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
