"""All ranks' endpoints into one file for Prometheus, and out of it again."""

from __future__ import annotations

import logging
import sys

import torch.distributed as dist

from trainer.config import Config
from trainer.config_sections import Telemetry as TelemetryConfig
from trainer.job import StopSignal
from trainer.run_dir import RunDir
from trainer.runtime import Runtime
from trainer.telemetry import targets
from trainer.telemetry.telemetry import Telemetry

log = logging.getLogger(__name__)


def within_timeout(config: Config) -> TelemetryConfig:
    """`[telemetry]`, lingering half of the collectives' time-out at most: at the end ranks wait for each other until
    all were scraped."""
    longest = config.launch.timeout_seconds / 2
    return config.telemetry.model_copy(update={"linger_seconds": min(config.telemetry.linger_seconds, longest)})


def publish(run_dir: RunDir, config: Config, telemetry: Telemetry, runtime: Runtime) -> None:
    """Collective: the file of a run that begins, or goes on. Nothing where there are no endpoints."""
    if telemetry.endpoint is None:
        return
    host, port = telemetry.endpoint
    addresses = [""] * runtime.world_size
    dist.all_gather_object(addresses, targets.address(host, port), group=runtime.control)
    if not runtime.is_first:
        return
    if not targets.is_loopback(host):
        log.warning(
            "telemetry.host = '%s': whoever reaches this machine can read the run's metrics → '127.0.0.1' keeps them "
            "here",
            host,
        )
    found = targets.targets(run_dir.path.name, addresses)
    ray = sys.modules.get("ray")
    if config.launch.ray_address and ray is not None and ray.is_initialized():  # a Ray of our own exports nothing
        found += targets.ray_targets(run_dir.path.name, ray.nodes())
    run_dir.write_json(run_dir.prometheus_targets, found)
    log.info("Prometheus finds all ranks by %s", run_dir.prometheus_targets)


def withdraw(run_dir: RunDir, telemetry: Telemetry, runtime: Runtime, stop: StopSignal) -> None:
    """Collective: the run ended as it should. It goes when the final values of every rank were scraped, or at once
    where somebody wants it to stop."""
    if telemetry.endpoint is None:
        return
    telemetry.linger(stop.requested)
    dist.barrier(group=runtime.control)  # a target that is gone is not scraped
    if runtime.is_first:
        targets.remove(run_dir.prometheus_targets)
