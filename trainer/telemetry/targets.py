"""The file by which Prometheus finds a run's endpoints: `file_sd_configs` with files: [RUN/prometheus_targets.json].

It is written when the run starts, and anew when it is resumed. A run that ends as it should takes it away, after its
final values were scraped; one that is lost leaves it, so that its targets are down and somebody is told.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

JOB = "tokenformer"
RAY_JOB = "ray"
ANY = ("0.0.0.0", "::")  # noqa: S104 - asked whether a host is one of them
LOOPBACK = ("127.", "localhost", "::1")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    return host.startswith(LOOPBACK)


def address(host: str, port: int) -> str:
    """host:port for others. Of an endpoint that listens everywhere: this machine's address, or its name where the
    name's address is a loopback one."""
    if host in ANY:
        host = socket.gethostname()
        try:
            found = socket.gethostbyname(host)
        except OSError:
            found = ""
        host = found if found and not is_loopback(found) else host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def targets(run: str, addresses: Sequence[str]) -> list[dict[str, Any]]:
    """One entry a rank. addresses: by rank."""
    return [
        {"targets": [where], "labels": {"job": JOB, "run": run, "rank": str(rank)}}
        for rank, where in enumerate(addresses)
    ]


def ray_targets(run: str, nodes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Ray's own metrics, one entry a node. nodes: of ray.nodes(); those that export nothing are left out."""
    return [
        {
            "targets": [address(node["NodeManagerAddress"], node["MetricsExportPort"])],
            "labels": {"job": RAY_JOB, "run": run, "node": node["NodeManagerAddress"]},
        }
        for node in nodes
        if node.get("Alive") and node.get("MetricsExportPort")
    ]


def remove(path: Path) -> None:
    """The run is over as it should be."""
    path.unlink(missing_ok=True)
