"""A Prometheus endpoint of this rank, with the declared metrics and nothing else."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from prometheus_client import CollectorRegistry

from embeddings.health import TableFigures
from trainer.config_sections import Telemetry
from trainer.errors import ConfigError
from trainer.metrics.values import TaskValues
from trainer.telemetry.build import build_labels
from trainer.telemetry.declared import METRICS, SCORES, TABLE_FIGURES, Metric
from trainer.telemetry.endpoint import Endpoint
from trainer.telemetry.goodput import CAUSES, Goodput
from trainer.telemetry.records import EvalRecord, TrainRecord
from trainer.telemetry.series import LEFT_OUT, Series
from trainer.telemetry.system import FIGURES, Probe
from trainer.telemetry.tables import SHOWN, highest

log = logging.getLogger(__name__)

UNKNOWN = float("nan")


class Prometheus:
    """Listens on host : port + rank on this host from construction on. Rank 0 tells all metrics, other ranks those of
    scope "rank".

    probe: asked for the machine's figures at every scrape. url: of the endpoint; port: as bound.
    Raises ConfigError: the port is taken, or the host is not one of this machine's.
    """

    def __init__(
        self, config: Telemetry, rank: int, tasks: Sequence[str], probe: Probe | None = None, world_size: int = 1
    ) -> None:
        registry = CollectorRegistry()
        told = [metric for metric in METRICS if metric.scope == "rank" or rank == 0]
        self._series = Series(registry, told)
        self._by_field = [metric for metric in told if metric.field]
        self._linger_seconds = config.linger_seconds
        self._closed = False
        self._data_through: float | None = None
        self._saved_at: float | None = None  # by time.monotonic
        self._set_first(rank, tasks, world_size)
        self._ask_at_scrapes(probe or Probe(Path(), of_job=rank == 0))
        # The same ports on every host: what finds endpoints by host, as on Kubernetes, knows no rank.
        local_rank = int(os.environ.get("LOCAL_RANK", str(rank)))
        port = config.port + local_rank if config.port else 0
        try:
            if port > 65535:
                raise OSError(0, "ports end at 65535")
            self._endpoint = Endpoint(config.host, port, registry)
        except OSError as error:
            raise ConfigError(
                f"telemetry.port {config.port}: rank {rank} cannot listen on {config.host}:{port} ({error.strerror}) → "
                "every rank of a host needs a port for itself, port + 0, 1, … → --telemetry.port 0 takes any free one, "
                "--telemetry.prometheus false does without"
            ) from error
        host = f"[{config.host}]" if ":" in config.host else config.host
        self.port = self._endpoint.port
        self.url = f"http://{host}:{self.port}/metrics"

    def stepped(self, step: int) -> None:
        """After every step: whether there is progress is seen between two logs as well."""
        self._series.raise_to("steps_total", step)

    def train(self, record: TrainRecord) -> None:
        """The newest values."""
        self.stepped(record.step)
        for metric in self._by_field:
            self._tell(metric, _value(record, metric.field))
        for prefix, tasks in (("train", record.tasks), ("lifetime", record.lifetime)):
            for task, values in tasks.items():
                for name in SCORES:
                    self._series.set(f"{prefix}_{name}", getattr(values, name), task)
        if record.goodput is not None:
            self._set_worker_seconds(record.goodput)
        slowest = record.slowest
        if slowest is not None:
            self._series.set_all("slowest_rank_step_seconds", {(str(slowest.rank), slowest.host): slowest.seconds})
        self._data_through = record.data_through_seconds
        age = record.checkpoint_age_seconds
        self._saved_at = None if age is None else time.monotonic() - age
        if record.tables:
            self._set_tables(record.tables)
        self._set_slices(record.slices)

    def eval(self, record: EvalRecord) -> None:
        """The newest values of that split."""
        for task, values in record.tasks.items():
            for name in (*SCORES, "loss"):
                self._series.set(f"eval_{name}", getattr(values, name), record.split, task)
            if task in record.gauc:
                self._series.set("eval_gauc", record.gauc[task].value, record.split, task)
        if record.collapse is not None:
            for kind, spectra in record.collapse.spectra.items():
                for layer, found in enumerate(spectra):
                    self._series.set("effective_rank", found.effective_rank, kind, str(layer))
            for kind, keys in record.collapse.attention.items():
                for layer, share in enumerate(keys["field"], start=1):
                    self._series.set("attention_on_fields", share, kind, str(layer))

    def checkpoint(self, step: int, size: int, seconds: float, stall_seconds: float = 0.0) -> None:
        """The newest one."""
        self._series.add("checkpoints_total")
        self._series.set("checkpoint_timestamp_seconds", time.time())
        self._series.set("checkpoint_step", step)
        self._series.set("checkpoint_save_seconds", seconds)
        self._series.set("checkpoint_stall_seconds", stall_seconds)
        self._series.set("checkpoint_bytes", size)
        self._saved_at = time.monotonic() - seconds

    def account(self, goodput: Goodput) -> None:
        """Where the run's time went, as of now: a last time, when the run ends after its last report."""
        record = SimpleNamespace(goodput=goodput)
        for metric in self._by_field:
            if metric.field.startswith("goodput."):
                self._tell(metric, _value(record, metric.field))
        self._set_worker_seconds(goodput)

    def event(self, name: str) -> None:
        """One more."""
        self._series.add("events_total", name)

    def linger(self, stop: Callable[[], bool] = lambda: False) -> None:
        """Until the final values were scraped, at most linger_seconds, or `stop` says so; not at all where nobody ever
        scraped."""
        if not self._linger_seconds or not self._endpoint.was_scraped:
            return
        log.info("the final metrics stay at %s until they are scraped, at most %g s", self.url, self._linger_seconds)
        if not self._endpoint.wait_for_scrape(self._linger_seconds, stop) and not stop():
            log.warning("nothing scraped the final metrics at %s within %g s", self.url, self._linger_seconds)

    def close(self) -> None:
        """The port is free. May be called twice."""
        if not self._closed:
            self._closed = True
            self._endpoint.close()

    def _tell(self, metric: Metric, value: Any) -> None:
        """Of a field of the record."""
        if metric.labels:
            for label, of_label in (value or {}).items():
                self._series.set(metric.name, of_label, label)
        elif metric.kind == "counter":
            self._series.raise_to(metric.name, value)
        else:
            self._series.set(metric.name, value)

    def _set_worker_seconds(self, goodput: Goodput) -> None:
        for device, seconds in goodput.worker_seconds.items():
            self._series.raise_to("worker_seconds_total", seconds, device)

    def _set_first(self, rank: int, tasks: Sequence[str], world_size: int) -> None:
        """Every series whose labels are known is there from the first scrape on."""
        for metric in self._series.metrics.values():
            if metric.kind == "gauge" and not metric.labels and metric.name != LEFT_OUT:
                self._series.set(metric.name, None)
        self._series.set("info", 1, str(rank))
        self._series.set("build_info", 1, *build_labels().values())
        self._series.set("world_size", world_size)
        for task in tasks:
            for prefix in ("train", "lifetime"):
                for name in SCORES:
                    self._series.set(f"{prefix}_{name}", None, task)
        for cause in CAUSES:
            self._series.set("lost_seconds", None, cause)

    def _ask_at_scrapes(self, probe: Probe) -> None:
        """Figures that go on while training stands still."""
        asked: dict[str, Callable[[], float]] = {name: partial(probe.value, name) for name in FIGURES}
        asked |= {"data_lag_seconds": self._lag, "checkpoint_age_seconds": self._checkpoint_age}
        for name, ask in asked.items():
            gauge = self._series.gauge(name)
            if gauge is not None:
                gauge.set_function(ask)

    def _lag(self) -> float:
        return UNKNOWN if self._data_through is None else time.time() - self._data_through

    def _checkpoint_age(self) -> float:
        return UNKNOWN if self._saved_at is None else time.monotonic() - self._saved_at

    def _set_slices(self, slices: Mapping[str, Mapping[str, TaskValues]]) -> None:
        """One that had no example since the last log has no value."""
        for name, of in slices.items():
            for task, values in of.items():
                for score in (*SCORES, "loss"):
                    self._series.set(f"train_slice_{score}", getattr(values, score), task, name)

    def _set_tables(self, tables: Mapping[str, TableFigures]) -> None:
        """Of each figure the tables where it is highest: 500 tables would be 5,000 series."""
        most = min(SHOWN, self._series.room_for_tables() // len(TABLE_FIGURES))
        for figure in TABLE_FIGURES:
            shown = highest(tables, figure, most)
            self._series.set_all(f"table_{figure}", {(table,): value for table, value in shown.items()})


def _value(record: Any, field: str) -> Any:
    """`goodput.share` of a TrainRecord; None where a part of the way is not known."""
    found: Any = record
    for name in field.split("."):
        found = None if found is None else getattr(found, name)
    return found
