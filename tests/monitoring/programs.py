"""Programs of the system that tests run, and a real Prometheus of one's own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"


def program(name: str, package: str) -> str:
    """Its path. Skips where it is not installed; CI installs it, so that there it fails."""
    path = shutil.which(name)
    if path is None:
        reason = f"{name} is not installed → apt-get install {package}"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    return path


def said(*command: str | Path, **more: Any) -> str:
    """What a command that must succeed says."""
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=110, check=False, **more
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Api:
    """Prometheus' HTTP API."""

    def __init__(self, url: str) -> None:
        self.url = url

    def ask(self, path: str, **parameters: Any) -> Any:
        """`data` of the answer. Raises ValueError with Prometheus' words where it refuses."""
        address = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(address, timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            if error.code == HTTPStatus.SERVICE_UNAVAILABLE:  # it is still starting
                raise
            raise ValueError(json.load(error)["error"]) from None

    def values(self, expr: str, **parameters: Any) -> list[tuple[dict[str, str], float]]:
        """[(labels, newest value)]."""
        found = self.ask("query", query=expr, **parameters)["result"]
        return [(series["metric"], float(series["value"][1])) for series in found]

    def until(self, what: str, found: Any, seconds: float = 30) -> Any:
        """What `found()` answers as soon as it is not empty."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                if answer := found():
                    return answer
            time.sleep(0.05)
        raise AssertionError(f"{what}: not within {seconds} s")


@contextlib.contextmanager
def prometheus(config: Path, state: Path) -> Iterator[Api]:
    """A real one on loopback, with that configuration."""
    port = free_port()
    log = (state / "prometheus.log").open("w")
    command = [
        program("prometheus", "prometheus"),
        f"--config.file={config}",
        f"--storage.tsdb.path={state / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    api = Api(f"http://127.0.0.1:{port}")
    try:
        api.until("Prometheus is ready", lambda: process.poll() is None and api.ask("status/buildinfo"))
        yield api
    finally:
        process.terminate()
        process.wait(timeout=20)
        log.close()
