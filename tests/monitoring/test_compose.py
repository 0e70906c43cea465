"""docker/compose.yaml, as far as it can be held without a container engine: what it mounts exists, images are pinned,
nothing is root or open to others, and what the services say to each other fits."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.monitoring.programs import ROOT

DOCKER = ROOT / "docker"
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


def mounts(service: dict[str, Any]) -> list[tuple[str, str, bool]]:
    """[(from where, to where, may be written)]."""
    parts = [mount.split(":") for mount in service.get("volumes", ())]
    return [(part[0], part[1], part[2:] != ["ro"]) for part in parts]


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_pinned_unprivileged_and_on_loopback(name: str) -> None:
    service = SERVICES[name]
    assert re.fullmatch(r"[\w./-]+:(v?\d+\.\d+\.\d+|cpu)", service["image"])
    assert not re.match(r"(0|root)\b", service["user"])
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is (name != "trainer")
    assert "privileged" not in service
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
    for source, _, written in mounts(service):
        if source.startswith("."):
            assert (DOCKER / source).exists() or source == "../runs", source
            assert not written or (name, source) == ("trainer", "../runs")
        else:
            assert source in COMPOSE["volumes"]


def test_what_prometheus_reads_lies_where_its_configuration_says() -> None:
    service = SERVICES["prometheus"]
    inside = {target: source for source, target, _ in mounts(service)}
    config = Path(next(word for word in service["command"] if word.startswith("--config.file=")).split("=")[1])
    assert (DOCKER / inside[str(config.parent)] / config.name).is_file()
    text = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text(encoding="utf-8"))
    targets = text["scrape_configs"][0]["file_sd_configs"][0]["files"][0]
    senders = text["alerting"]["alertmanagers"][0]["file_sd_configs"][0]["files"][0]
    for pattern, source in ((targets, "targets"), (senders, "./alertmanagers")):
        folder = str((config.parent / pattern).parent.as_posix())
        parts: list[str] = []
        for part in folder.split("/"):
            parts = parts[:-1] if part == ".." else [*parts, part]
        assert inside["/".join(parts)] == source
    copying = SERVICES["targets"]["entrypoint"]
    assert ("targets", copying[-1], True) in mounts(SERVICES["targets"])
    assert ("../runs", copying[-2], False) in mounts(SERVICES["targets"])
    (address,) = json.loads((DOCKER / "alertmanagers/compose.json").read_text())[0]["targets"]
    assert address.split(":")[0] in SERVICES


def test_grafana_finds_prometheus_and_the_dashboards() -> None:
    service = SERVICES["grafana"]
    inside = {target: source for source, target, _ in mounts(service)}
    environment = service["environment"]
    assert re.fullmatch(r"http://(\w+):9090", environment["PROMETHEUS_URL"])[1] in SERVICES  # type: ignore[index]
    for key in ("DASHBOARDS", "GF_PATHS_PROVISIONING"):
        (target,) = [target for target in inside if environment[key].startswith(target)]
        assert (DOCKER / inside[target] / Path(environment[key]).relative_to(target)).is_dir()


def test_the_image_has_two_stages_and_no_root() -> None:
    text = (DOCKER / "Dockerfile").read_text(encoding="utf-8")
    stages = re.findall(r"^FROM (\S+)( AS \w+)?$", text, re.MULTILINE)
    assert [image for image, _ in stages] == ["python:3.11.13-slim-bookworm"] * 2
    last = text.split("FROM ")[-1]
    assert re.search(r"^USER (?!0|root)", last, re.MULTILINE)
    assert 'ENTRYPOINT ["tokenformer"]' in last
    for source in re.findall(r"^COPY ((?:[\w./]+ )+)\S+$", text.split("FROM ")[1], re.MULTILINE):
        assert all((ROOT / name).exists() for name in source.split())
    build = SERVICES["trainer"]["build"]
    assert (DOCKER / build["context"] / build["dockerfile"]).samefile(DOCKER / "Dockerfile")
