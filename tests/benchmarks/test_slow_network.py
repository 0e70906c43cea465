"""The network of two namespaces is there while it is used, at its rate, and nothing of it stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.benchmarks.slow_network import NAMES, PREFIX, slow_network, why_not

ROOT = Path(__file__).resolve().parents[2]
HOLDER = (
    "from tests.benchmarks.slow_network import slow_network\nwith slow_network(1.0):\n    import time; time.sleep(60)"
)
RECEIVER = (
    "import socket; s = socket.create_server(('10.213.0.2', 9999)); print(flush=True); c = s.accept()[0]\n"
    "while c.recv(1 << 20): pass"
)
SENDER = (
    "import socket, time; s = socket.create_connection(('10.213.0.2', 9999)); t = time.perf_counter()\n"
    "s.sendall(bytes({size})); s.shutdown(socket.SHUT_WR); s.recv(1); print(time.perf_counter() - t)"
)


@pytest.fixture(autouse=True)
def _permitted() -> None:
    if not (reason := why_not()):
        return
    if os.environ.get("CI") and os.geteuid() == 0:
        pytest.fail(f"CI is to run this: {reason}")
    pytest.skip(reason)


def _namespaces_of(process: int) -> list[str]:
    return sorted(path.name for path in NAMES.glob(f"{PREFIX}{process}-*"))


def _fail_inside() -> None:
    with slow_network(None):
        assert len(_namespaces_of(os.getpid())) == 2
        raise ZeroDivisionError


@pytest.mark.timeout(60)
def test_bytes_take_as_long_as_the_rate_says() -> None:
    size = 10_000_000
    with slow_network(0.4) as (first, second):
        receiver = subprocess.Popen(second.command([sys.executable, "-c", RECEIVER]), stdout=subprocess.PIPE)
        assert receiver.stdout is not None
        receiver.stdout.readline()
        sender = first.command([sys.executable, "-c", SENDER.format(size=size)])
        seconds = float(subprocess.run(sender, check=True, capture_output=True, timeout=30).stdout)
        receiver.wait(10)
    assert seconds > 0.9 * size * 8 / 0.4e9


@pytest.mark.timeout(60)
def test_an_error_leaves_nothing_behind() -> None:
    with pytest.raises(ZeroDivisionError):
        _fail_inside()
    assert not _namespaces_of(os.getpid())


@pytest.mark.timeout(60)
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nor_does_a_process_that_is_ended(end: signal.Signals) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        while len(_namespaces_of(holder.pid)) < 2:
            assert holder.poll() is None
            time.sleep(0.02)
    finally:
        holder.send_signal(end)
        holder.wait(20)
    if end == signal.SIGKILL:  # nobody can tidy up then but the next one
        with slow_network(None):
            pass
    assert not _namespaces_of(holder.pid)
