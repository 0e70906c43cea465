"""`make monitor`: what it starts, what it says, that it cleans up after itself, and what it says where it cannot."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.monitoring.programs import ROOT, Api, free_port, program

pytestmark = pytest.mark.timeout(90)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A folder with deploy/ as ours has it; state and logs go there."""
    shutil.copytree(ROOT / "deploy", tmp_path / "deploy")
    return tmp_path


@pytest.fixture
def ports() -> dict[str, str]:
    return {name: str(free_port()) for name in ("PORT", "ALERTMANAGER_PORT", "GRAFANA_PORT")}


def _monitor(repository: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(repository / "deploy" / "monitor" / "monitor.sh")],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.fixture
def started(repository: Path, ports: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    program("prometheus", "prometheus")
    program("prometheus-alertmanager", "prometheus-alertmanager")
    process = _monitor(repository, **ports)
    yield process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _listens(port: str) -> bool:
    with socket.socket() as asked:
        return asked.connect_ex(("127.0.0.1", int(port))) == 0


def test_it_starts_says_where_and_ends_without_leftovers(
    started: subprocess.Popen[str], ports: dict[str, str], repository: Path
) -> None:
    assert started.stdout is not None
    line = started.stdout.readline()
    assert re.match(rf"watching runs/ at http://127\.0\.0\.1:{ports['PORT']} ", line), line
    assert f"http://127.0.0.1:{ports['ALERTMANAGER_PORT']}" in line
    api = Api(f"http://127.0.0.1:{ports['PORT']}")
    groups = api.until("Prometheus has read the rules", lambda: api.ask("rules")["groups"])
    assert {group["name"] for group in groups} == {"tokenformer", "tokenformer-recorded"}
    assert json.loads((repository / "runs/.monitor/alertmanagers/local.json").read_text()) == [
        {"targets": [f"127.0.0.1:{ports['ALERTMANAGER_PORT']}"]}
    ]
    # On loopback only: no other address of this machine answers.
    addresses = {found[4][0] for found in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    for address in addresses - {"127.0.0.1", "127.0.1.1"}:
        with socket.socket() as asked:
            asked.settimeout(5)
            assert asked.connect_ex((str(address), int(ports["PORT"]))) != 0
    started.send_signal(signal.SIGTERM)
    assert started.wait(timeout=30) == 0
    assert not any(map(_listens, ports.values()))


def test_what_is_missing_or_taken_is_one_line(repository: Path, ports: dict[str, str]) -> None:
    bare = repository / "bin"  # all it needs but Prometheus
    bare.mkdir()
    for name in ("bash", "dirname", "sh"):
        (bare / name).symlink_to(program(name, "bash"))
    missing = _monitor(repository, PATH=str(bare), **ports)
    said = missing.communicate(timeout=30)[1]
    assert (missing.returncode, said.count("\n")) == (2, 1)
    assert said.startswith("error: prometheus is not installed → ")
    assert "apt-get install prometheus" in said

    program("prometheus", "prometheus")
    with socket.create_server(("127.0.0.1", int(ports["PORT"]))):
        taken = _monitor(repository, **ports)
        said = taken.communicate(timeout=30)[1]
    assert (taken.returncode, said.count("\n")) == (2, 1)
    assert said.startswith(f"error: port {ports['PORT']} is taken → ")
    assert not (repository / "runs").exists()


def _copy(runs: Path, out: Path) -> dict[str, str]:
    subprocess.run([str(ROOT / "deploy/monitor/targets.sh"), str(runs), str(out), "0"], check=True, timeout=30)
    return {path.name: path.read_text() for path in out.iterdir()}


def test_targets_come_and_go_with_the_runs(tmp_path: Path) -> None:
    runs, out = tmp_path / "runs", tmp_path / "runs" / ".monitor" / "targets"
    assert _copy(runs, out) == {}
    for name in ("one", "two and a half"):
        (runs / name).mkdir()
        (runs / name / "prometheus_targets.json").write_text(f'["{name}"]')
    assert _copy(runs, out) == {"one.json": '["one"]', "two and a half.json": '["two and a half"]'}
    unchanged = (out / "one.json").stat().st_ino
    (runs / "two and a half" / "prometheus_targets.json").write_text("[]")
    (runs / "old").mkdir()
    assert _copy(runs, out)["two and a half.json"] == "[]"
    assert (out / "one.json").stat().st_ino == unchanged, "Prometheus is not woken for nothing"
    (runs / "two and a half" / "prometheus_targets.json").unlink()
    shutil.rmtree(runs / "one")
    assert _copy(runs, out) == {}
    began = time.monotonic()
    assert _copy(tmp_path / "nowhere", out) == {}
    assert time.monotonic() - began < 20
