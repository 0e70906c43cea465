"""Figures of the machine: memory, GPU memory, Ray's object store, disk. None where there is no such thing."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from trainer import machine

FRESH_SECONDS = 1.0  # figures that old are told again: a scrape asks for all of them one after the other
STORE_FRESH_SECONDS = 10.0  # Ray's are a question to its head


@dataclass(frozen=True)
class SystemFigures:
    """Bytes. process_resident: of this process, in RAM. host_memory_available: what the host, or its container, can
    still give, of host_memory. device_memory…: of this rank's GPU: held by tensors, held by torch, all of it.
    object_store…: of Ray's, all nodes. disk…: of the file system that the run directory is on."""

    process_resident_bytes: int
    host_memory_available_bytes: int
    host_memory_bytes: int
    disk_free_bytes: int | None = None
    disk_bytes: int | None = None
    device_memory_allocated_bytes: int | None = None
    device_memory_reserved_bytes: int | None = None
    device_memory_bytes: int | None = None
    object_store_used_bytes: int | None = None
    object_store_bytes: int | None = None


FIGURES = tuple(field.name for field in fields(SystemFigures))


class Probe:
    """path: whose disk is looked at. of_job: also what is asked once a job: disk and object store. Any thread may ask;
    it costs about 0.1 ms, at most once a second."""

    def __init__(self, path: Path, of_job: bool = True) -> None:
        self._path, self._of_job = path, of_job
        self._lock = threading.Lock()
        self._process: Any = None
        self._at = 0.0
        self._figures: SystemFigures | None = None
        self._store_at = 0.0
        self._store: tuple[int | None, int | None] = (None, None)

    def now(self) -> SystemFigures:
        """As of the last second."""
        with self._lock:
            if self._figures is None or time.monotonic() - self._at > FRESH_SECONDS:
                self._figures, self._at = self._look(), time.monotonic()
            return self._figures

    def value(self, name: str) -> float:
        """One figure, NaN for None: for the exporter."""
        found: int | None = getattr(self.now(), name)
        return float("nan") if found is None else float(found)

    def _look(self) -> SystemFigures:
        import psutil  # noqa: PLC0415 - only where there is telemetry

        if self._process is None:
            self._process = psutil.Process()
        host = psutil.virtual_memory()
        limit = machine.memory_bytes()
        used = machine.container_memory_used() if limit < host.total else None
        available = host.available if used is None else min(host.available, max(0, limit - used))
        disk_free, disk = self._disk()
        allocated, reserved, device = _device_memory()
        store_used, store = self._object_store()
        return SystemFigures(
            process_resident_bytes=self._process.memory_info().rss,
            host_memory_available_bytes=available,
            host_memory_bytes=limit,
            disk_free_bytes=disk_free,
            disk_bytes=disk,
            device_memory_allocated_bytes=allocated,
            device_memory_reserved_bytes=reserved,
            device_memory_bytes=device,
            object_store_used_bytes=store_used,
            object_store_bytes=store,
        )

    def _disk(self) -> tuple[int | None, int | None]:
        if not self._of_job:
            return None, None
        import psutil  # noqa: PLC0415

        try:
            found = psutil.disk_usage(str(self._path))
        except OSError:  # the directory is not made yet, or gone
            return None, None
        return found.free, found.total

    def _object_store(self) -> tuple[int | None, int | None]:
        """(used, size) as last heard. Ray's head is asked by a thread of its own: nobody waits for the answer."""
        ray = sys.modules.get("ray")
        if not self._of_job or ray is None or not ray.is_initialized():
            return None, None
        if time.monotonic() - self._store_at > STORE_FRESH_SECONDS:
            self._store_at = time.monotonic()
            threading.Thread(target=self._ask_ray, args=(ray,), name="object-store", daemon=True).start()
        return self._store

    def _ask_ray(self, ray: Any) -> None:
        with suppress(Exception):  # of a Ray that is going down
            size = int(ray.cluster_resources().get("object_store_memory", 0))
            free = int(
                ray.available_resources().get("object_store_memory", 0)
            )  # Ray keeps it up to date with what is used
            self._store = (max(0, size - free), size)


def _device_memory() -> tuple[int | None, int | None, int | None]:
    """(held by tensors, held by torch, all) of the current GPU; never the first to touch CUDA."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return None, None, None
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    return torch.cuda.memory_allocated(), torch.cuda.memory_reserved(), total
