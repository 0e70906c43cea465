"""`train --profile`: a trace of a few steps of every rank, with the parts of the step named on it, for Perfetto.

torch.profiler records every operator; what is trained stays the same, the traced steps are slower. Recording begins
with the first step and anew with step 11 of the process, when pools are warm and buffers have grown; it ends with step
15, or with the run. So the shortest run leaves a trace, and a longer one a trace of steps like all others.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from trainer.runtime import Runtime
from trainer.step_split import StepClock

log = logging.getLogger(__name__)

WARM_STEPS, STEPS = 10, 5
VIEWER = "https://ui.perfetto.dev"


class StepProfile:
    """Of this rank, into folder/rank_N.json.gz; told before every step, closed after the last. Spans are named like the
    parts (`trainer.step_split`), and `step N` from the start of a step to that of the next."""

    def __init__(self, folder: Path, runtime: Runtime, clock: StepClock) -> None:
        self._path = folder / f"rank_{runtime.rank}.json.gz"
        self._runtime, self._clock = runtime, clock
        self._profile: profile | None = None
        self._span: Any = None
        self._begun = 0  # steps of this process
        self._steps: list[int] = []  # recorded
        if runtime.device.type == "cpu":  # else what CUPTI may have to say is worth reading
            os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # a line at every start and stop
        folder.mkdir(parents=True, exist_ok=True)
        if runtime.is_first:
            for left in folder.iterdir():  # of an earlier start, perhaps of more ranks; nobody writes before step 1
                left.unlink()

    def before_step(self, step: int) -> None:
        """step: since the model's birth."""
        self._end_span()
        if self._begun == WARM_STEPS:
            self._stop()  # what was recorded so far was for a run that ends earlier
        elif self._begun == WARM_STEPS + STEPS:
            self.close(step - 1)
        if self._begun in (0, WARM_STEPS):
            self._start()
        self._begun += 1
        if self._profile is not None:
            self._steps.append(step)
            self._span = record_function(f"step {step}")
            self._span.__enter__()

    def close(self, last_step: int) -> None:
        """Writes the trace and says where it is; nothing where that is done. last_step: that was trained; another may
        have begun, only to find no data. Raises OSError."""
        self._end_span()
        found = self._stop()
        steps = [step for step in self._steps if step <= last_step]
        if found is None or not steps:
            return
        part = self._path.with_name(f".{self._path.name.removesuffix('.json.gz')}.part.json.gz")
        with self._clock.part("telemetry"):
            found.export_chrome_trace(str(part))
            part.replace(self._path)
        if self._runtime.is_first:
            others = ", of the other ranks beside it" if self._runtime.world_size > 1 else ""
            log.info("profile of steps %d–%d: %s%s; open it at %s", steps[0], steps[-1], self._path, others, VIEWER)

    def _start(self) -> None:
        activities = [ProfilerActivity.CPU]
        if self._runtime.device.type == "cuda":
            torch.cuda.synchronize(self._runtime.device)  # only what the traced steps queue belongs to them
            activities.append(ProfilerActivity.CUDA)
        self._steps = []
        self._profile = profile(activities=activities)
        with self._clock.part("telemetry"):
            self._profile.start()
        self._clock.traced = True

    def _stop(self) -> profile | None:
        self._clock.traced = False
        found, self._profile = self._profile, None
        if found is not None:
            with self._clock.part("telemetry"):
                found.stop()
        return found

    def _end_span(self) -> None:
        if self._span is not None:
            self._span.__exit__(None, None, None)
            self._span = None
