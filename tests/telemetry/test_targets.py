"""What Prometheus reads to find the ranks."""

from __future__ import annotations

import socket

import pytest

from trainer.telemetry import targets


def test_an_address_is_one_that_others_can_use(monkeypatch: pytest.MonkeyPatch) -> None:
    assert targets.address("127.0.0.1", 9000) == "127.0.0.1:9000"
    assert targets.address("::1", 9000) == "[::1]:9000"
    monkeypatch.setattr(socket, "gethostname", lambda: "node-7")
    monkeypatch.setattr(socket, "gethostbyname", lambda name: {"node-7": "10.0.0.7"}[name])
    assert targets.address("0.0.0.0", 9000) == "10.0.0.7:9000"
    monkeypatch.setattr(socket, "gethostbyname", lambda _: "127.0.1.1")  # as some distributions set it up
    assert targets.address("::", 9000) == "node-7:9000"
    assert [targets.is_loopback(host) for host in ("127.0.0.1", "localhost", "::1", "0.0.0.0", "10.0.0.7")] == [
        True,
        True,
        True,
        False,
        False,
    ]


def test_each_rank_is_a_target_of_its_own() -> None:
    found = targets.targets("week", ["10.0.0.7:9000", "10.0.0.8:9001"])
    assert found == [
        {"targets": ["10.0.0.7:9000"], "labels": {"job": "tokenformer", "run": "week", "rank": "0"}},
        {"targets": ["10.0.0.8:9001"], "labels": {"job": "tokenformer", "run": "week", "rank": "1"}},
    ]
    nodes = [
        {"Alive": True, "NodeManagerAddress": "10.0.0.7", "MetricsExportPort": 8080},
        {"Alive": False, "NodeManagerAddress": "10.0.0.8", "MetricsExportPort": 8080},
        {"Alive": True, "NodeManagerAddress": "10.0.0.9", "MetricsExportPort": 0},
    ]
    assert targets.ray_targets("week", nodes) == [
        {"targets": ["10.0.0.7:8080"], "labels": {"job": "ray", "run": "week", "node": "10.0.0.7"}}
    ]
