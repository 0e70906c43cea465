"""A real network of two hosts on one machine: two network namespaces, joined by a veth pair that `tc tbf` shapes.

Needs root, and `ip` and `tc` (package iproute2). Everything is removed at the end, also after an error, Ctrl-C or
SIGTERM; what a killed process left is removed by the next one.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

PREFIX = "tokenformer-bench-"
NAMES = Path("/run/netns")
TOOLS = ("ip", "tc")

# A bucket holds what the rate lets through in a millisecond, but two of the largest packets that the kernel hands over
# (64 KiB) at least: tbf cuts larger ones, at a cost in CPU time that no network card has.
BURST_SECONDS, BURST_BYTES = 1e-3, 128 * 1024
QUEUE_MS = 20  # what a switch would hold


@dataclass(frozen=True)
class Host:
    """One end of the link."""

    namespace: str
    interface: str
    address: str

    def command(self, program: Sequence[str]) -> list[str]:
        """What runs a program there."""
        return [_tool("ip"), "netns", "exec", self.namespace, *program]


def why_not() -> str | None:
    """The reason why no such network can be made here; None where it can."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return f"{' and '.join(missing)} not found → network namespaces need them → install the package iproute2"
    if os.geteuid() != 0:
        return "not root → network namespaces need it → run this as root"
    try:
        with slow_network(1.0):
            return None
    except subprocess.CalledProcessError as error:
        said = (error.stderr or "").strip().splitlines()
        return f"{' '.join(error.cmd[:3])} … → refused: {said[-1] if said else error} → run this where it is permitted"


@contextmanager
def slow_network(gbits: float | None) -> Iterator[tuple[Host, Host]]:
    """Two hosts. gbits: the rate of each direction; None = as fast as the machine is.

    Raises CalledProcessError where the kernel refuses.
    """
    _remove_what_was_left()
    hosts = tuple(Host(f"{PREFIX}{os.getpid()}-{i}", f"veth{i}", f"10.213.0.{i + 1}") for i in range(2))
    earlier = signal.signal(signal.SIGTERM, _end)  # as Ctrl-C: through `finally`
    try:
        for host in hosts:
            _run("ip", "netns", "add", host.namespace)
            _run("ip", "-n", host.namespace, "link", "set", "lo", "up")
        first, second = hosts
        pair = [first.interface, "netns", first.namespace, "type", "veth"]
        _run("ip", "link", "add", *pair, "peer", "name", second.interface, "netns", second.namespace)
        for host in hosts:
            _run("ip", "-n", host.namespace, "address", "add", f"{host.address}/30", "dev", host.interface)
            _run("ip", "-n", host.namespace, "link", "set", host.interface, "up")
            if gbits is not None:
                _shape(host, gbits)
        yield first, second
    finally:
        for host in hosts:
            _remove(host.namespace)
        signal.signal(signal.SIGTERM, earlier)


def _shape(host: Host, gbits: float) -> None:
    burst = max(BURST_BYTES, round(gbits * 1e9 / 8 * BURST_SECONDS))
    settings = ["rate", f"{round(gbits * 1000)}mbit", "burst", f"{burst}b", "latency", f"{QUEUE_MS}ms"]
    _run("tc", "-n", host.namespace, "qdisc", "add", "dev", host.interface, "root", "tbf", *settings)


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise FileNotFoundError(f"{name} not found → network namespaces need it → install the package iproute2")
    return path


def _run(tool: str, *arguments: str) -> None:
    subprocess.run([_tool(tool), *arguments], check=True, capture_output=True, text=True, timeout=20)


def _remove(namespace: str) -> None:
    """With the interfaces in it."""
    if (NAMES / namespace).exists():
        _run("ip", "netns", "delete", namespace)


def _remove_what_was_left() -> None:
    for path in NAMES.glob(f"{PREFIX}*"):
        owner = path.name.removeprefix(PREFIX).partition("-")[0]
        if not Path("/proc", owner).exists():
            with suppress(subprocess.CalledProcessError):  # another process was as quick
                _remove(path.name)
