"""Peak memory of a step, from the allocator's own events."""

from __future__ import annotations

from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile


def peak_bytes(step: Callable[[], None]) -> int:
    """The most that `step` held at one time above what was there before it (CPU)."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    held = peak = 0
    for event in sorted(_allocations(profiled), key=lambda pair: pair[0]):
        held += event[1]
        peak = max(peak, held)
    return peak


def _allocations(profiled: profile) -> list[tuple[int, int]]:
    """(when, bytes), negative where freed."""
    results = profiled.profiler.kineto_results  # type: ignore[union-attr]
    return [(event.start_ns(), event.nbytes()) for event in results.events() if event.name() == "[memory]"]
