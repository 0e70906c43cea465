"""`data prepare` with its tasks in this process, one after the other: quick, and open to limits no machine has."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines import prepare_build, prepare_change, prepare_ray


def run_inline(patch: Callable[[Any, str, Any], None]) -> None:
    """patch: setattr, or a monkeypatch's."""

    def run_tasks(task: Callable[[int], Any], count: int, what: str = "", limit: int | None = None) -> list[Any]:
        return [json.loads(json.dumps(task(index))) for index in range(count)]

    @contextmanager
    def no_ray(address: str, num_cpus: int | None) -> Iterator[None]:
        yield

    patch(prepare_build, "run_tasks", run_tasks)
    patch(prepare_change, "run_tasks", run_tasks)
    patch(prepare_build, "cpus", lambda: 2)
    patch(prepare_ray, "ray_session", no_ray)


def contents(folder: Path) -> dict[str, bytes]:
    """{path in the folder: bytes} of what readers see."""
    paths = sorted(path.relative_to(folder) for path in folder.rglob("*.parquet"))
    return {str(path): (folder / path).read_bytes() for path in paths if not str(path).startswith("_")}
