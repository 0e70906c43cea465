"""A real Slurm of one node on this machine, for a test: munge, controller and node daemon on ports of their own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmctldPort={controller}
SlurmdPort={node}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
KillWait=5
MpiDefault=none
NodeName={host} NodeHostname={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def require_slurm() -> None:
    """Skips where it is not installed or cannot be started; in CI that is a failure."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    if not missing and os.geteuid() != 0:
        missing = ["root, which its daemons want"]
    if missing and os.environ.get("CI"):
        pytest.fail(f"Slurm cannot be started: no {', '.join(missing)}")
    if missing:
        pytest.skip(f"needs a Slurm of its own: no {', '.join(missing)}")


@contextmanager
def slurm(folder: Path) -> Iterator[dict[str, str]]:
    """The environment in which Slurm's commands reach it; it is idle when this begins."""
    folder.mkdir(parents=True)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    conf = folder / "slurm.conf"
    host = socket.gethostname().split(".")[0]
    conf.write_text(CONF.format(host=host, folder=folder, controller=_free_port(), node=_free_port()))
    environment = dict(os.environ, SLURM_CONF=str(conf), PATH=PATH)
    munge = ["--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket"]
    munge += [f"--{name}={folder}/munge.{name}" for name in ("pid-file", "log-file", "seed-file")]
    with ExitStack() as stack:
        for command in (["munged", *munge], ["slurmctld", "-D", "-c"], ["slurmd", "-D"]):
            log = stack.enter_context((folder / f"{command[0]}.log").open("w"))
            daemon = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            stack.callback(_end, daemon)
            if command[0] == "munged":
                _until((folder / "munge.socket").exists, "munge listens")
        _until(lambda: "idle" in _say(environment, "sinfo", "-h", "-o", "%T"), "the node is idle")
        stack.callback(_say, environment, "scancel", "--user=root")
        yield environment


def _say(environment: dict[str, str], *command: str) -> str:
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False).stdout


def _until(holds: Callable[[], object], what: str, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.2)


def _end(daemon: subprocess.Popen[bytes]) -> None:
    daemon.terminate()
    try:
        daemon.wait(15)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])
