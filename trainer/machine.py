"""What this machine offers, asked without importing torch: the command has to answer before that."""

from __future__ import annotations

import ctypes
import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

DISTRIBUTIONS = ("torch", "torchrec", "fbgemm-gpu", "fbgemm-gpu-cpu", "ray", "pyarrow", "pydantic", "safetensors")
CGROUP_CPU = Path("/sys/fs/cgroup/cpu.max")
CGROUP_MEMORY = Path("/sys/fs/cgroup/memory.max")
CGROUP_MEMORY_USED = Path("/sys/fs/cgroup/memory.current")
CGROUP_MEMORY_STAT = Path("/sys/fs/cgroup/memory.stat")


_before_pinning: set[int] | None = None  # cores that this process might use


def cores() -> int:
    """CPU cores this process may use: its affinity, and the container's quota where there is one. `pinned` changes
    nothing about it."""
    allowed = len(_before_pinning or os.sched_getaffinity(0))
    try:
        quota, period = CGROUP_CPU.read_text().split()
        return max(1, min(allowed, int(quota) // int(period)))
    except (OSError, ValueError):  # no cgroup v2, or "max"
        return allowed


@contextmanager
def pinned(place: int, places: int) -> Iterator[tuple[int, ...]]:
    """The calling thread, and those that it starts from now on, on cores of its own: share `place` of the `places` that
    the process's cores are cut into. Yields them; none, and nothing is done, where there are fewer cores than places.
    """
    global _before_pinning  # noqa: PLW0603 - of the process, like the affinity itself
    allowed = os.sched_getaffinity(0)
    size = len(allowed) // places
    own = tuple(sorted(allowed)[place * size : (place + 1) * size])
    if not own:
        yield own
        return
    _before_pinning = allowed
    os.sched_setaffinity(0, own)
    try:
        yield own
    finally:
        os.sched_setaffinity(0, allowed)
        _before_pinning = None


def memory_bytes() -> int:
    """Memory this process may use: the machine's, or the container's limit where that is smaller."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(total, int(CGROUP_MEMORY.read_text()))
    except (OSError, ValueError):
        return total


def container_memory_used() -> int | None:
    """Bytes of the container's limit that are in use and cannot be given back at once: without files that were read and
    not looked at since. None where there is no cgroup v2."""
    try:
        stat = dict(line.split() for line in CGROUP_MEMORY_STAT.read_text().splitlines())
        return max(0, int(CGROUP_MEMORY_USED.read_text()) - int(stat.get("inactive_file", 0)))
    except (OSError, ValueError):
        return None


def gpus() -> tuple[int, str]:
    """GPUs that training can use, and the reason for the number."""
    present = len([path for path in Path("/dev").glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name)])
    if not present:
        return 0, "no GPU here"
    if version("fbgemm-gpu") is None:
        return 0, f"{present} GPU(s) here, but the CPU build of fbgemm is installed"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        named = len([name for name in visible.split(",") if name.strip() not in ("", "-1")])
        return min(named, present), f"CUDA_VISIBLE_DEVICES={visible}"
    return present, f"{present} GPU(s) here"


def keep_freed_memory() -> bool:
    """Makes glibc's malloc keep what is freed, instead of giving large blocks back to the kernel and waiting for zeroed
    pages in every step: about 8 % of a CPU step (docs/benchmarks). False where the C library has no such setting."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    trim_threshold, mmap_threshold = -1, -3  # malloc.h
    return bool(mallopt(mmap_threshold, 2**30)) and bool(mallopt(trim_threshold, 2**31 - 1))


def version(distribution: str) -> str | None:
    """Installed version of a distribution, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def environment() -> dict[str, Any]:
    """What a run ran on, for its env.json."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: version(name) for name in DISTRIBUTIONS if version(name)},
        "cpu": cpu_info("model name"),
        "cores": cores(),
        "memory_bytes": memory_bytes(),
        "gpus": gpus()[0],
    }


def cpu_info(key: str) -> str:
    """The first CPU's value of `key` in /proc/cpuinfo, "" where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""
    match = re.search(rf"^{key}\s*:\s*(.*)$", text, re.MULTILINE)
    return match[1] if match else ""
