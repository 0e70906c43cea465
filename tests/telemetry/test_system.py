"""Figures of the machine are those that the system itself tells, and what runs is named."""

from __future__ import annotations

import math
import mmap
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from trainer import machine
from trainer.telemetry.build import commit
from trainer.telemetry.system import FIGURES, Probe, SystemFigures


def _status(key: str, path: str = "/proc/self/status") -> int:
    """Bytes."""
    (line,) = [line for line in Path(path).read_text().splitlines() if line.startswith(f"{key}:")]
    return 1024 * int(line.split()[1])


def test_memory_and_disk_are_those_of_the_system(tmp_path: Path) -> None:
    found = Probe(tmp_path).now()
    assert found.process_resident_bytes == pytest.approx(_status("VmRSS"), rel=0.05)
    assert found.host_memory_bytes == machine.memory_bytes()
    assert found.host_memory_available_bytes <= 1.2 * _status("MemAvailable", "/proc/meminfo")
    assert found.disk_bytes == shutil.disk_usage(tmp_path).total
    assert (found.object_store_bytes, found.device_memory_bytes) == (None, None)
    held = mmap.mmap(-1, 200 * 2**20)  # of its own: an array might be given memory that was free already
    held.write(b"1" * len(held))
    more = Probe(tmp_path).now()
    assert more.process_resident_bytes == pytest.approx(_status("VmRSS"), rel=0.05)
    assert more.process_resident_bytes > 0.9 * len(held)
    held.close()


def test_within_a_container_its_limit_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    files = {
        "memory.max": "1000000000",
        "memory.current": "700000000",
        "memory.stat": "anon 5\ninactive_file 100000000",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(machine, "CGROUP_MEMORY", tmp_path / "memory.max")
    monkeypatch.setattr(machine, "CGROUP_MEMORY_USED", tmp_path / "memory.current")
    monkeypatch.setattr(machine, "CGROUP_MEMORY_STAT", tmp_path / "memory.stat")
    found = Probe(tmp_path).now()
    assert (found.host_memory_bytes, found.host_memory_available_bytes) == (10**9, 400_000_000)


def test_what_there_is_not_is_not_told(tmp_path: Path) -> None:
    gone, other_rank = Probe(tmp_path / "gone"), Probe(tmp_path, of_job=False)
    assert gone.now().disk_free_bytes is None
    assert other_rank.now().disk_free_bytes is None
    assert math.isnan(gone.value("disk_free_bytes"))
    assert gone.value("process_resident_bytes") > 0
    assert set(FIGURES) == set(SystemFigures.__dataclass_fields__)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_the_object_store_is_ray_s_own_figure(tmp_path: Path) -> None:
    script = """
import sys, time, numpy, ray
from pathlib import Path
from trainer.telemetry import system
system.FRESH_SECONDS = system.STORE_FRESH_SECONDS = 0.0
size = 200 * 2**20
ray.init(address="local", num_cpus=1, include_dashboard=False, object_store_memory=size)
probe, block = system.Probe(Path(sys.argv[1])), ray.put(numpy.ones(50 * 2**20, numpy.uint8))
until = time.monotonic() + 60
while (probe.now().object_store_used_bytes or 0) < 50 * 2**20:
    assert time.monotonic() < until, probe.now()
    time.sleep(0.1)
found = probe.now()
assert found.object_store_bytes == size and found.object_store_used_bytes < 60 * 2**20, found
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    subprocess.run(command, check=True, timeout=110, cwd=Path(__file__).parents[2])


def test_a_checkout_says_its_commit(tmp_path: Path) -> None:
    git = tmp_path / ".git"
    assert commit(tmp_path) == ""
    (git / "refs" / "heads").mkdir(parents=True)
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    assert commit(tmp_path) == ""
    (git / "packed-refs").write_text("# pack-refs\n" + "b" * 40 + " refs/heads/main\n")
    assert commit(tmp_path) == "b" * 12
    (git / "refs" / "heads" / "main").write_text("a" * 40 + "\n")
    assert commit(tmp_path) == "a" * 12
    (git / "HEAD").write_text("c" * 40 + "\n")
    assert commit(tmp_path) == "c" * 12
    work = tmp_path / "work"  # a worktree of it
    (git / "worktrees" / "work").mkdir(parents=True)
    work.mkdir()
    (work / ".git").write_text(f"gitdir: {git}/worktrees/work\n")
    (git / "worktrees" / "work" / "HEAD").write_text("ref: refs/heads/main\n")
    (git / "worktrees" / "work" / "commondir").write_text("../..\n")
    assert commit(work) == "a" * 12
