"""The `doctor` verb: what is installed, what this machine has, and what will be slower here and why."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path

from trainer import machine

PYTHON = (3, 11)
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - asked for its size, never written to
SMALL_SHARED_MEMORY = 1 << 30


@dataclass
class Findings:
    """facts: (what, value). slower: what costs time here. problems: what keeps runs from working."""

    facts: list[tuple[str, str]] = field(default_factory=list)
    slower: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """For a person."""
        width = max(len(what) for what, _ in self.facts)
        return [
            *(f"{what.ljust(width)}  {value}" for what, value in self.facts),
            *(f"slower here: {line}" for line in self.slower),
            *(f"problem: {line}" for line in self.problems),
            *([] if self.problems else ["fine: nothing here keeps a run from working"]),
        ]


def examine() -> Findings:
    """Look at everything. Imports torch and torchrec, because whether they load is a finding."""
    findings = Findings()
    _versions(findings)
    _hardware(findings)
    _libraries(findings)
    _loopback(findings)
    return findings


def lock_step_problems(versions: dict[str, str | None]) -> list[str]:
    """torch 2.(n+5), torchrec 1.n and fbgemm 1.n belong together; of the two fbgemm builds one is installed."""
    problems = []
    if versions["fbgemm-gpu"] and versions["fbgemm-gpu-cpu"]:
        problems.append(
            "fbgemm-gpu and fbgemm-gpu-cpu are both installed → they share a folder and break each other "
            "→ remove .venv, make setup"
        )
    fbgemm = versions["fbgemm-gpu"] or versions["fbgemm-gpu-cpu"]
    found = {"torch": versions["torch"], "torchrec": versions["torchrec"], "fbgemm": fbgemm}
    missing = [name for name, version in found.items() if version is None]
    if missing:
        return [*problems, f"{', '.join(missing)} not installed → training needs all three → make setup"]
    minors = {name: _minor(version) for name, version in found.items() if version}
    if not minors["torchrec"] == minors["fbgemm"] == minors["torch"] - 5:
        listed = " · ".join(f"{name} {version}" for name, version in found.items())
        problems.append(
            f"{listed} → they move in lock-step: 1.8 ↔ torch 2.13, 1.9 ↔ 2.14 → make setup installs a set that fits"
        )
    return problems


def _versions(findings: Findings) -> None:
    versions = {name: machine.version(name) for name in machine.DISTRIBUTIONS}
    findings.facts.append(("python", platform.python_version()))
    findings.facts += [(name, version) for name, version in versions.items() if version]
    findings.problems += lock_step_problems(versions)
    if sys.version_info[:2] != PYTHON:
        findings.problems.append(
            f"python {platform.python_version()} → the locks are for 3.11 → make setup PYTHON=python3.11"
        )


def _hardware(findings: Findings) -> None:
    cores, memory = machine.cores(), machine.memory_bytes()
    gpus, reason = machine.gpus()
    flags = set(machine.cpu_info("flags").split())
    findings.facts += [("cores", str(cores)), ("memory", f"{memory / 2**30:.1f} GiB"), ("gpus", f"{gpus} ({reason})")]
    if not gpus:
        findings.slower.append(f"everything dense: {reason}, so the tower runs on the CPU in float32")
    bf16 = [flag for flag in ("amx_bf16", "avx512_bf16") if flag in flags]
    findings.facts.append(
        ("cpu", ", ".join([*(flag for flag in ("avx2", "avx512f") if flag in flags), *bf16]) or "plain")
    )
    if "avx2" not in flags:
        findings.slower.append("table lookups: this CPU has no AVX2, which fbgemm's kernels are written for")
    if not bf16:
        findings.slower.append("bfloat16: this CPU has neither AMX nor AVX512-BF16, float32 is the faster choice")
    if cores < 2:
        findings.slower.append("ranks: one core, so more than one worker only takes turns")
    if SHARED_MEMORY.is_dir():
        size = shutil.disk_usage(SHARED_MEMORY).total
        findings.facts.append(("shared memory", f"{size / 2**30:.1f} GiB"))
        if size < SMALL_SHARED_MEMORY:
            findings.slower.append(
                "Ray: /dev/shm is under 1 GiB, its object store goes to disk (containers: --shm-size 2g)"
            )


def _libraries(findings: Findings) -> None:
    try:
        import torch  # noqa: PLC0415
        import torch.distributed as dist  # noqa: PLC0415
        import torchrec  # noqa: F401, PLC0415 - loading it registers fbgemm's operators

        torch.ops.fbgemm.asynchronous_complete_cumsum(torch.ones(2, dtype=torch.int64))
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        text = str(error).strip().splitlines()
        findings.problems.append(
            f"torch, torchrec and fbgemm do not load together: {text[0] if text else error!r} → make setup"
        )
        return
    backends = [
        name for name, there in (("gloo", dist.is_gloo_available()), ("nccl", dist.is_nccl_available())) if there
    ]
    findings.facts.append(("backends", ", ".join(backends) or "none"))
    if "gloo" not in backends:
        findings.problems.append("torch has no gloo → ranks agree over it → install another torch build")
    threads = os.environ.get("OMP_NUM_THREADS")
    if threads is not None:
        findings.facts.append(("OMP_NUM_THREADS", threads))


def _loopback(findings: Findings) -> None:
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            findings.facts.append(("ports", f"loopback gives free ports ({server.getsockname()[1]} just now)"))
    except OSError as error:
        findings.problems.append(f"no port on 127.0.0.1: {error} → metrics and ranks listen there → allow it")


def _minor(version: str) -> int:
    return int(version.split(".")[1])
